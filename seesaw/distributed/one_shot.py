"""Ranks of a stage whose GPUs map each other's memory: small sums by one kernel each, the rest by
NCCL. From which size on is measured when they are joined.

All decisions here are the same on all ranks: they are made of what ranks tell each other, and of
shapes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from seesaw.cuda.peer_memory import PeerMemory
from seesaw.cuda.peer_sum import BUFFER_BYTES, MAX_RANKS, MOST_BYTES, PeerSum, takes
from seesaw.layers.comm import Comm
from seesaw.log import get_logger

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

PROBED_BYTES = tuple(1 << power for power in range(13, MOST_BYTES.bit_length()))  # from 8 KiB on
REPEATS = 20

Exchange = Callable[[str], list[str]]
"""Tells the others a text and returns those of all, in order of rank. Together."""

logger = get_logger(__name__)


def exchange_over(store: Store, place: str, rank: int, ranks: Sequence[int]) -> Exchange:
    """Among `ranks`, under keys of `store` that begin with `place`."""
    turns = itertools.count()

    def exchange(text: str) -> list[str]:
        turn = next(turns)
        store.set(f"{place} {turn} {rank}", text)
        return [store.get(f"{place} {turn} {other}").decode() for other in ranks]

    return exchange


class SmallSum(Protocol):
    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """As `Comm` has it, of what `takes` allows."""
        ...


class OneShotGroup:
    """A `Comm`: sums of up to `limit_bytes` by `small`, all else by `group`."""

    def __init__(self, group: Comm, small: SmallSum, limit_bytes: int) -> None:
        self._group, self._small = group, small
        self.limit_bytes = limit_bytes
        self.size, self.rank = group.size, group.rank
        self.recordable = group.recordable

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        if 0 < x.nbytes <= self.limit_bytes and takes(x):
            return self._small.all_reduce(x)
        return self._group.all_reduce(x)

    def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        return self._group.all_gather(x)


class Memory(Protocol):
    """As `PeerMemory`."""

    handle: str

    def open(self, handles: Sequence[str], rank: int) -> list[int]: ...

    def close_peers(self) -> None: ...

    def close(self) -> None: ...


def map_peers(
    rank: int, size: int, exchange: Exchange, make: Callable[[], Memory]
) -> tuple[Memory, list[int]] | None:
    """This rank's memory, and where it and those of the others are mapped; None, on all ranks,
    where one of them cannot. Together."""
    if size > MAX_RANKS:
        return None
    memory, addresses, why = None, list[int](), ""
    try:
        memory = make()
    except Exception as error:  # what CUDA and cupy raise has no common type
        why = repr(error)
    handles = exchange("" if memory is None else memory.handle)
    if memory is not None and all(handles):
        try:
            addresses = memory.open(handles, rank)
        except Exception as error:
            why = repr(error)
    whys = exchange("" if addresses else why or "another rank has none")
    if not any(whys):
        assert memory is not None, "addresses without memory"
        return memory, addresses
    if memory is not None:
        memory.close_peers()
    exchange("closed")  # before anything that is mapped goes
    if memory is not None:
        memory.close()
    if rank == 0:
        logger.info("Sums go over NCCL alone, GPUs do not map each other's memory: %s", whys)
    return None


def join_one_shot(
    group: Comm, device: torch.device, exchange: Exchange
) -> tuple[OneShotGroup, Memory] | None:
    """`group` with small sums by kernel; None where GPUs do not reach each other, or NCCL is faster
    for all. Together."""
    mapped = map_peers(
        group.rank, group.size, exchange, lambda: PeerMemory(BUFFER_BYTES, device)
    )  # fmt: skip
    if mapped is None:
        return None
    memory, addresses = mapped
    small = PeerSum(device, group.rank, addresses)
    with torch.cuda.device(device), torch.inference_mode():
        limit = agreed_limit(
            [(nbytes, *_seconds(group, small, nbytes, device)) for nbytes in PROBED_BYTES], exchange
        )
    logger.debug("rank %d: sums of up to %d bytes by one kernel", group.rank, limit)
    return OneShotGroup(group, small, limit), memory


def agreed_limit(times: Sequence[tuple[int, float, float]], exchange: Exchange) -> int:
    """The largest size up to which a kernel was faster, of (bytes, seconds of the kernel, seconds
    of NCCL) in order, on the rank where that is least. Together."""
    own = 0
    for nbytes, small_s, nccl_s in times:
        if small_s >= nccl_s:
            break
        own = nbytes
    return min(map(int, exchange(str(own))))


def _seconds(
    group: Comm, small: SmallSum, nbytes: int, device: torch.device
) -> tuple[float, float]:
    x = torch.zeros(nbytes // 2, dtype=torch.bfloat16, device=device)
    found = []
    for one in (small, group):
        one.all_reduce(x)
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
        marks[0].record()
        for _ in range(REPEATS):
            one.all_reduce(x)
        marks[1].record()
        marks[1].synchronize()
        found.append(float(marks[0].elapsed_time(marks[1])) / 1e3 / REPEATS)
    return found[0], found[1]
