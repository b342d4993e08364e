"""What a group of ranks is built on: torch.distributed, or the C++ links of seesaw._cpu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from seesaw.layers.comm import Comm

MOST_EXCHANGES = 2
"""One for weights, one for KV."""


class PeerExchange(Protocol):
    """Pieces of weights or KV from rank to rank, many at once. Apart from all else that ranks say
    to each other, so that a thread of its own may use it."""

    def exchange(
        self,
        sends: Sequence[tuple[int, torch.Tensor]],
        receives: Sequence[tuple[int, torch.Tensor]],
    ) -> None:
        """Send and fill contiguous tensors, (peer, tensor) each; on return all is done (on a GPU:
        in the order of the current stream).

        What rank a sends to b must be what b receives from a: as many, in this order, of these
        sizes. Empty tensors are left out on both sides. A rank with nothing to move returns at
        once.
        """
        ...


class Transport(Protocol):
    """Joins all ranks. Tensors are contiguous and not empty."""

    def comm(self, stages: Sequence[Sequence[int]]) -> Comm:
        """Of this rank's stage; `stages` are all of a layout, of two ranks or more. Together."""
        ...

    def send(self, x: torch.Tensor, to_rank: int) -> None: ...

    def receive(self, x: torch.Tensor, from_rank: int) -> None:
        """Fill `x`."""
        ...

    def peer_exchange(self) -> PeerExchange:
        """Another one each time, MOST_EXCHANGES at most. Together."""
        ...

    def close(self) -> None:
        """Leave, when what was sent has arrived or will without this rank."""
        ...
