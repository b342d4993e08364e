"""Shared memory through which ranks of one host talk: a file without a name that the driver makes
and every rank maps. It has room for several sets of links: one for steps, and one for each exchange
of weights or KV, which another thread makes. What lies in it is the business of
csrc/cpu/shm_memory.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from seesaw.distributed.native import NativeTransport
from seesaw.distributed.transport import MOST_EXCHANGES
from seesaw.hostmem.shared import SharedMemory, new_file
from seesaw.plan.workspace import MAX_HANDOVERS

if TYPE_CHECKING:
    from seesaw import _cpu

LEAST_SLOT_BYTES = 256 << 10
"""Of what a rank takes from another at once: weights are exchanged in pieces of this size where no
hidden states are handed over."""

_WHAT = "the memory through which ranks talk"
_ADVICE = "Use collectives='tcp' or 'gloo'."


def new_shared_file(num_ranks: int, slot_bytes: int) -> int:
    """For one group of ranks, once. `slot_bytes`: the largest hand-over that does not wait for its
    receiver; no memory is taken for what is not used. Raises HostMemoryError."""
    nbytes = _num_bytes(num_ranks, slot_bytes) + MOST_EXCHANGES * _num_bytes(num_ranks, 0)
    return new_file("seesaw-links", nbytes, what=_WHAT, advice=_ADVICE)


def join(fd: int, rank: int, num_ranks: int, slot_bytes: int, timeout_s: float) -> NativeTransport:
    """Wait for the other ranks. `fd` is this rank's from here on. Raises HostMemoryError, and
    RuntimeError where a rank does not come."""
    from seesaw._cpu import ShmLinks

    class MappedLinks(ShmLinks):
        """They touch the memory once more when they are closed: it stays mapped until then, in
        whatever order things go where a rank fails."""

        memory: torch.Tensor | None = None  # where they were joined

        def __del__(self) -> None:
            if self.memory is not None:
                self.close()

    first_bytes, set_bytes = _num_bytes(num_ranks, slot_bytes), _num_bytes(num_ranks, 0)
    nbytes = first_bytes + MOST_EXCHANGES * set_bytes
    memory = SharedMemory(fd, nbytes, writable=True, what=_WHAT, advice=_ADVICE)

    def links(offset: int, slot_bytes: int) -> _cpu.Links:
        joined = MappedLinks(
            memory=memory.tensor.data_ptr() + offset,
            num_ranks=num_ranks,
            ring_slots=MAX_HANDOVERS,
            slot_bytes=max(slot_bytes, LEAST_SLOT_BYTES),
            rank=rank,
            timeout_s=timeout_s,
        )
        joined.memory = memory.tensor
        return joined

    def join_again(number: int) -> _cpu.Links:
        return links(first_bytes + (number - 1) * set_bytes, 0)

    return NativeTransport(links(0, slot_bytes), rank, join_again, memory.close)


def _num_bytes(num_ranks: int, slot_bytes: int) -> int:
    from seesaw._cpu import ShmLinks

    return ShmLinks.num_bytes(
        num_ranks=num_ranks,
        ring_slots=MAX_HANDOVERS,
        slot_bytes=max(slot_bytes, LEAST_SLOT_BYTES),
    )
