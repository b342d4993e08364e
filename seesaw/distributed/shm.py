"""Shared memory through which ranks of one host talk: a file without a name that the driver makes
and every rank maps. What lies in it is the business of csrc/cpu/shm_comm.
"""

from __future__ import annotations

from seesaw.distributed.native import NativeTransport
from seesaw.hostmem.shared import SharedMemory, new_file
from seesaw.plan.workspace import MAX_HANDOVERS

LEAST_SLOT_BYTES = 256 << 10
"""Of what a rank takes from another at once: weights are exchanged in pieces of this size where no
hidden states are handed over."""

_WHAT = "the memory through which ranks talk"
_ADVICE = "Use collectives='tcp' or 'gloo'."


def new_shared_file(num_ranks: int, slot_bytes: int) -> int:
    """For one group of ranks, once. `slot_bytes`: the largest hand-over that does not wait for its
    receiver; no memory is taken for what is not used. Raises HostMemoryError."""
    nbytes = _num_bytes(num_ranks, slot_bytes)
    return new_file("seesaw-links", nbytes, what=_WHAT, advice=_ADVICE)


def join(fd: int, rank: int, num_ranks: int, slot_bytes: int, timeout_s: float) -> NativeTransport:
    """Wait for the other ranks. `fd` is this rank's from here on. Raises HostMemoryError, and
    RuntimeError where a rank does not come."""
    from seesaw._cpu import ShmLinks

    nbytes = _num_bytes(num_ranks, slot_bytes)
    memory = SharedMemory(fd, nbytes, writable=True, what=_WHAT, advice=_ADVICE)
    links = ShmLinks(
        memory=memory.tensor.data_ptr(),
        num_ranks=num_ranks,
        ring_slots=MAX_HANDOVERS,
        slot_bytes=max(slot_bytes, LEAST_SLOT_BYTES),
        rank=rank,
        timeout_s=timeout_s,
    )
    return NativeTransport(links, rank, memory.close)


def _num_bytes(num_ranks: int, slot_bytes: int) -> int:
    from seesaw._cpu import ShmLinks

    return ShmLinks.num_bytes(
        num_ranks=num_ranks,
        ring_slots=MAX_HANDOVERS,
        slot_bytes=max(slot_bytes, LEAST_SLOT_BYTES),
    )
