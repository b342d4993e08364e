"""The host tier: one piece of memory that all ranks of a replica map, backed as blocks come into
use.

Which block belongs to whom is the scheduler's business, copying that of `transfer.py`.
"""

from __future__ import annotations

import math
import mmap

import torch

from seesaw.hostmem.shared import COMMIT_BYTES, PAGE_LOCK_BYTES, SharedMemory, new_file
from seesaw.layout.kv import TierShape

_ADVICE = "Lower host_kv_memory to what this machine or container can give."


class HostTier(SharedMemory):
    """Memory of `shape.nbytes` bytes; at first none of it is backed (see `commit`). The creator
    hands `fd` to the other ranks, which `attach` it. Transfers are closed before it is."""

    def __init__(self, fd: int, shape: TierShape) -> None:
        """`fd` is the tier's from here on. Use `create` or `attach`."""
        super().__init__(fd, shape.nbytes, writable=True, what=_what(shape), advice=_ADVICE)
        self.shape = shape

    @classmethod
    def create(cls, shape: TierShape) -> HostTier:
        """A new tier. Raises HostMemoryError."""
        fd = new_file("seesaw-kv-tier", shape.nbytes, what=_what(shape), advice=_ADVICE)
        return cls(fd, shape)

    @classmethod
    def attach(cls, fd: int, shape: TierShape) -> HostTier:
        """The tier of another process, whose file `fd` becomes this one's. Raises HostMemoryError,
        and ValueError where the file is not of that shape."""
        return cls(fd, shape)

    def commit(self, num_blocks: int) -> None:
        """Have memory for blocks `0 .. num_blocks` before any rank writes there, and for some more,
        so that few calls take any. Raises HostMemoryError as `back`."""
        if not 0 <= num_blocks <= self.shape.num_blocks:
            raise ValueError(
                f"commit: got {num_blocks} blocks, expected 0 to {self.shape.num_blocks}"
            )
        wanted = num_blocks * self.shape.block_bytes
        if wanted > self.committed_bytes:
            self.back(min(self.nbytes, max(wanted, self.committed_bytes + COMMIT_BYTES)))

    def page_lock(self, device: torch.device) -> None:
        """Begin to register it with CUDA, see `begin_page_lock`."""
        # No block lies in two registered pieces: a CUDA copy must not cross from one to the next.
        unit = math.lcm(mmap.PAGESIZE, self.shape.block_bytes)
        self.begin_page_lock(device, -(-PAGE_LOCK_BYTES // unit) * unit)


def _what(shape: TierShape) -> str:
    return f"the host tier of {shape.nbytes} bytes"
