"""The host tier: one piece of memory that all ranks of a machine map, backed page by page as blocks
come into use.

Owns the file, the mapping and their end. Which block belongs to whom is the scheduler's business,
copying that of `transfer.py`.
"""

from __future__ import annotations

import errno
import fcntl
import math
import mmap
import os

import torch

from seesaw.errors import HostMemoryError
from seesaw.kvcache.page_lock import CudaHostMemory, PageLock
from seesaw.layout.kv import TierShape

COMMIT_BYTES = 64 << 20
"""Memory is taken in steps of at least this much, and in system calls of this much, since a signal
makes such a call begin again."""

PAGE_LOCK_BYTES = 256 << 20
"""About what is registered with CUDA at a time."""


class HostTier:
    """Memory of `shape.nbytes` bytes; at first none of it is backed (see `commit`).

    A file without a name (memfd), so that nothing stays behind however a process ends. The creator
    hands `fd` to the other ranks, which `attach` it.
    """

    def __init__(self, fd: int, shape: TierShape) -> None:
        """`fd` is the tier's from here on. Use `create` or `attach`."""
        self.fd = fd
        self.shape = shape
        self._committed_bytes = 0
        self._page_lock: PageLock | None = None
        try:
            pages = mmap.mmap(fd, shape.nbytes)
        except OSError as error:
            os.close(fd)
            raise HostMemoryError(
                f"the system refused to map the host tier of {shape.nbytes} bytes: {error}. "
                "Lower host_kv_memory."
            ) from error
        # The tensor keeps the mapping alive: it ends with the last view, never under a reader.
        self._tensor: torch.Tensor | None = torch.frombuffer(pages, dtype=torch.uint8)

    @classmethod
    def create(cls, shape: TierShape) -> HostTier:
        """A new tier. Raises HostMemoryError."""
        fd = os.memfd_create("seesaw-kv-tier", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, shape.nbytes)
            # Whoever maps it need not fear that it becomes shorter.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        except OSError as error:
            os.close(fd)
            raise HostMemoryError(
                f"the system refused a host tier of {shape.nbytes} bytes: {error}. "
                "Lower host_kv_memory."
            ) from error
        return cls(fd, shape)

    @classmethod
    def attach(cls, fd: int, shape: TierShape) -> HostTier:
        """The tier of another process, whose file `fd` becomes this one's. Raises HostMemoryError,
        and ValueError where the file is not of that shape."""
        size = os.fstat(fd).st_size
        if size != shape.nbytes:
            os.close(fd)
            raise ValueError(f"file of the host tier: got {size} bytes, expected {shape.nbytes}")
        return cls(fd, shape)

    @property
    def tensor(self) -> torch.Tensor:
        """All of it, uint8 `[nbytes]`."""
        if self._tensor is None:
            raise ValueError("the host tier is closed")
        return self._tensor

    @property
    def committed_bytes(self) -> int:
        """What this process has had backed."""
        return self._committed_bytes

    def commit(self, num_blocks: int) -> None:
        """Have memory for blocks `0 .. num_blocks` before any rank writes there; cheap where it is
        there already. A write elsewhere would work too, but end the process where memory is short.

        Raises HostMemoryError where the system has no more; what was committed stays usable.
        """
        if not 0 <= num_blocks <= self.shape.num_blocks:
            raise ValueError(
                f"commit: got {num_blocks} blocks, expected 0 to {self.shape.num_blocks}"
            )
        wanted = num_blocks * self.shape.block_bytes
        if wanted <= self._committed_bytes:
            return
        wanted = min(self.shape.nbytes, max(wanted, self._committed_bytes + COMMIT_BYTES))
        while self._committed_bytes < wanted:
            size = min(COMMIT_BYTES, wanted - self._committed_bytes)
            try:
                os.posix_fallocate(self.fd, self._committed_bytes, size)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
                    raise
                raise HostMemoryError(
                    f"the host tier could not grow from {self._committed_bytes} to {wanted} bytes "
                    f"(of {self.shape.nbytes}): {os.strerror(error.errno)}. Lower "
                    "host_kv_memory to what this machine or container can give."
                ) from error
            self._committed_bytes += size

    def page_lock(self, device: torch.device) -> None:
        """Begin to register all of it with CUDA, in the background, which backs all of it with
        memory; copies work meanwhile, slower. Ends with `close`. Nothing where it has begun."""
        if self._page_lock is not None:
            return
        # No block lies in two registered pieces: a CUDA copy must not cross from one to the next.
        unit = math.lcm(mmap.PAGESIZE, self.shape.block_bytes)
        piece_bytes = -(-PAGE_LOCK_BYTES // unit) * unit
        cuda = CudaHostMemory(device)
        self._page_lock = PageLock(
            self.tensor.data_ptr(), self.shape.nbytes, piece_bytes, cuda.register, cuda.unregister
        )

    def check_page_lock(self, *, wait: bool = False) -> None:
        """Raises HostMemoryError where CUDA has refused to page-lock it. `wait`: until all is."""
        if self._page_lock is not None:
            if wait:
                self._page_lock.wait()
            self._page_lock.check()

    def close(self) -> None:
        """Give the file back, and the mapping as soon as no view of `tensor` is left. Transfers
        must have been closed before. Safe to call twice."""
        if self._tensor is None:
            return
        if self._page_lock is not None:
            self._page_lock.close()
        self._tensor = None
        os.close(self.fd)
