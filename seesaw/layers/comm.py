"""What layers ask of the ranks that share them.

Which library answers is the business of `distributed`.
"""

from __future__ import annotations

from typing import Protocol

import torch


class Comm(Protocol):
    """The tensor-parallel ranks of one stage. Every rank makes the same calls in the same order.

    `recordable`: calls may be part of a CUDA graph.
    """

    size: int
    rank: int
    recordable: bool

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks; `x` (contiguous) may be changed and returned. Same bits on all."""
        ...

    def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        """`x` of each rank, in order of rank; shapes are equal on all ranks."""
        ...


class Alone:
    """A stage of one rank."""

    size = 1
    rank = 0
    recordable = True

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x]


ALONE = Alone()
