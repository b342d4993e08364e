"""The token embedding, its rows cut over the ranks of a stage.

Owns the look-up alone; scaling is the decoder's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from seesaw.layers.comm import Comm
from seesaw.layout.ranges import Range

# Shape letters: T tokens, V rows of the vocabulary on this rank, H hidden.


def embed(
    token_ids_T: torch.Tensor, weight_VH: torch.Tensor, vocab: Range, comm: Comm
) -> torch.Tensor:
    """Rows `[T, H]` of the tokens (int64); `vocab`: the ids that `weight_VH` holds.

    Each token is held by one rank and is 0 on the others, so the sum over ranks is exact.
    """
    if comm.size == 1:
        return F.embedding(token_ids_T, weight_VH)
    local_T = token_ids_T - vocab.start
    elsewhere_T = (local_T < 0) | (local_T >= vocab.size)
    hidden_TH = F.embedding(local_T.masked_fill_(elsewhere_T, 0), weight_VH)
    return comm.all_reduce(hidden_TH.masked_fill_(elsewhere_T[:, None], 0))
