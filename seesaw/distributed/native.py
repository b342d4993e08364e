"""Ranks joined by the C++ links of seesaw._cpu, over shared memory or TCP, without
torch.distributed: tensors become addresses here.

How links come about is the business of `shm.py` and `tcp.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from seesaw.distributed.transport import MOST_EXCHANGES

if TYPE_CHECKING:
    from seesaw import _cpu

_SUMMED = {torch.bfloat16: "bfloat16", torch.float32: "float32"}


class NativeGroup:
    """A `Comm`. `native` is the same for C++ code, which calls it without Python."""

    recordable = False

    def __init__(self, comm: _cpu.Comm) -> None:
        self.native = comm
        self.size, self.rank = comm.size, comm.rank

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        assert x.is_contiguous(), "all_reduce of a tensor with gaps"
        name = _SUMMED.get(x.dtype)
        if name is not None:
            self.native.all_reduce(x.data_ptr(), x.numel(), name)
            return x
        # Nothing that is often summed: by all, in the same order.
        wide = torch.float32 if x.dtype == torch.float16 else x.dtype
        return x.copy_(torch.stack(self.all_gather(x)).sum(0, dtype=wide))

    def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = x.contiguous()
        parts = torch.empty((self.size, *x.shape), dtype=x.dtype)
        self.native.all_gather(x.data_ptr(), parts.data_ptr(), x.nbytes)
        return list(parts)


class NativeExchange:
    """A `PeerExchange` over links of its own, so that another thread may use it than the one whose
    sums and hand-overs go over the transport's: all bytes of a link go in one order."""

    def __init__(self, links: _cpu.Links) -> None:
        self._links = links

    def exchange(
        self,
        sends: Sequence[tuple[int, torch.Tensor]],
        receives: Sequence[tuple[int, torch.Tensor]],
    ) -> None:
        self._links.exchange(_parcels(sends), _parcels(receives))

    def close(self) -> None:
        self._links.close()


class NativeTransport:
    """A `Transport`. `join_again` makes another set of links between the same ranks, together: the
    first, the second, ...; `release` is called when all are closed.
    """

    def __init__(
        self,
        links: _cpu.Links,
        rank: int,
        join_again: Callable[[int], _cpu.Links],
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self._links = links
        self._rank = rank
        self._join_again = join_again
        self._exchanges: list[NativeExchange] = []
        self._release = release

    def comm(self, stages: Sequence[Sequence[int]]) -> NativeGroup:
        (own,) = (stage for stage in stages if self._rank in stage)
        return NativeGroup(self._links.comm(list(own)))

    def send(self, x: torch.Tensor, to_rank: int) -> None:
        self._links.send(to_rank, x.data_ptr(), x.nbytes)

    def receive(self, x: torch.Tensor, from_rank: int) -> None:
        self._links.receive(from_rank, x.data_ptr(), x.nbytes)

    def peer_exchange(self) -> NativeExchange:
        assert len(self._exchanges) < MOST_EXCHANGES, "more exchanges than there is room for"
        exchange = NativeExchange(self._join_again(1 + len(self._exchanges)))
        self._exchanges.append(exchange)
        return exchange

    def close(self) -> None:
        for exchange in self._exchanges:
            exchange.close()
        self._links.close()
        self._release()


def _parcels(pieces: Sequence[tuple[int, torch.Tensor]]) -> list[tuple[int, int, int]]:
    assert all(x.is_contiguous() for _, x in pieces), "an exchange of a tensor with gaps"
    return [(peer, x.data_ptr(), x.nbytes) for peer, x in pieces]
