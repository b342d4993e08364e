"""A head that is the embedding: one tensor under two names."""

from __future__ import annotations

import torch

from seesaw.layout.format import WeightFormat
from seesaw.layout.stored import EMBEDDING

HEAD = "lm_head.weight"


def add_tied_head(params: dict[str, torch.Tensor], fmt: WeightFormat) -> None:
    """Where `fmt` has no head of its own, the head of `params` is their embedding, if they have
    one."""
    if EMBEDDING in params and all(param.name != HEAD for param in fmt.params):
        params[HEAD] = params[EMBEDDING]
