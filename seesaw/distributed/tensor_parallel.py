"""Sums and gathers over the ranks of one stage: `Comm` by torch.distributed."""

from __future__ import annotations

import torch
import torch.distributed as dist


class TensorParallelGroup:
    """A `Comm`. NCCL and gloo sum each element once and hand the sum to all, so that the ranks'
    bits are the same."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.size = group.size()
        self.rank = group.rank()

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel():
            dist.all_reduce(x, group=self._group)
        return x

    def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        parts = [torch.empty_like(x) for _ in range(self.size)]
        if x.numel():
            dist.all_gather(parts, x, group=self._group)
        return parts
