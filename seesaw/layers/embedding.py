"""The token embedding, its rows cut over the ranks of a stage."""

from __future__ import annotations

import torch

from seesaw.layers.comm import Comm
from seesaw.layout.ranges import Range
from seesaw.ops.vocab_embed import vocab_embed

# Shape letters: T tokens, V rows of the vocabulary on this rank, H hidden.


def embed(
    token_ids_T: torch.Tensor, weight_VH: torch.Tensor, vocab: Range, scale: float, comm: Comm
) -> torch.Tensor:
    """Rows `[T, H]` of the tokens (int64) times `scale`; `vocab`: the ids that `weight_VH` holds.

    Each token is held by one rank and is 0 on the others, so the sum over ranks is exact.
    """
    hidden_TH = vocab_embed(token_ids_T, weight_VH, vocab.start, scale)
    return hidden_TH if comm.size == 1 else comm.all_reduce(hidden_TH)
