"""Memory that several processes map: a file without a name (memfd), so that nothing stays behind
however a process ends.

Owns the file, the mapping, how much of it is backed or page-locked, and their end. What lies in it
is the business of who derives from it: the host tier, the image of the weights.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import warnings

import torch

from seesaw.errors import HostMemoryError
from seesaw.hostmem.page_lock import CudaHostMemory, PageLock

COMMIT_BYTES = 64 << 20
"""Memory is taken in system calls of this much, since a signal makes such a call begin again."""

PAGE_LOCK_BYTES = 256 << 20
"""About what is registered with CUDA at a time."""


class SharedMemory:
    """`nbytes` bytes of the file `fd`, which is this object's from here on.

    `what` and `advice` word its errors: what needs how much, and what to do where the system
    refuses. Raises HostMemoryError, and ValueError where the file is not of that size.
    """

    def __init__(self, fd: int, nbytes: int, *, writable: bool, what: str, advice: str) -> None:
        self.fd = fd
        self.nbytes = nbytes
        self._what, self._advice = what, advice
        self._committed_bytes = 0
        self._page_lock: PageLock | None = None
        try:
            size = os.fstat(fd).st_size
            if size != nbytes:
                raise ValueError(f"{what}: got {size} bytes, expected {nbytes}")
            protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
            pages = mmap.mmap(fd, nbytes, mmap.MAP_SHARED, protection)
        except OSError as error:
            os.close(fd)
            raise HostMemoryError(
                f"{what}: the system did not map it ({error}). {advice}"
            ) from error
        except ValueError:
            os.close(fd)
            raise
        # The tensor keeps the mapping alive: it ends with the last view, never under a reader.
        self._tensor: torch.Tensor | None = _as_tensor(pages)

    @property
    def tensor(self) -> torch.Tensor:
        """All of it, uint8 `[nbytes]`."""
        if self._tensor is None:
            raise ValueError(f"{self._what}: the memory is closed")
        return self._tensor

    @property
    def committed_bytes(self) -> int:
        """What this process has had backed."""
        return self._committed_bytes

    def back(self, nbytes: int) -> None:
        """Have memory for the first `nbytes`; cheap where it is there already. A write elsewhere
        would work too, but end the process where memory is short.

        Raises HostMemoryError where the system has no more; what was backed stays usable.
        """
        while self._committed_bytes < nbytes:
            size = min(COMMIT_BYTES, nbytes - self._committed_bytes)
            try:
                os.posix_fallocate(self.fd, self._committed_bytes, size)
            except OSError as error:
                raise HostMemoryError(
                    f"{self._what}: the system gave {self._committed_bytes} of {nbytes} bytes "
                    f"({error}). {self._advice}"
                ) from error
            self._committed_bytes += size

    def begin_page_lock(self, device: torch.device, piece_bytes: int) -> None:
        """Begin to register all of it with CUDA for `device`, in pieces, in the background, which
        backs all of it with memory; copies work meanwhile, slower. Ends with `close`. Nothing where
        it has begun."""
        if self._page_lock is not None:
            return
        cuda = CudaHostMemory(device)
        self._page_lock = PageLock(
            self.tensor.data_ptr(), self.nbytes, piece_bytes, cuda.register, cuda.unregister
        )

    def check_page_lock(self, *, wait: bool = False) -> None:
        """Raises HostMemoryError where CUDA has refused to page-lock it. `wait`: until all is."""
        if self._page_lock is not None:
            if wait:
                self._page_lock.wait()
            self._page_lock.check()

    @property
    def is_page_locking(self) -> bool:
        """Whether it is registered with CUDA, or will be."""
        return self._page_lock is not None

    def is_page_locked(self, stop: int, timeout_s: float | None = None) -> bool:
        """Whether the first `stop` bytes are registered with CUDA, or none are to be; waits so long
        for it, None without end. Raises HostMemoryError where CUDA has refused."""
        return self._page_lock is None or self._page_lock.wait(stop, timeout_s)

    def close(self) -> None:
        """Give the file back, and the mapping as soon as no view of `tensor` is left. Copies must
        be through. Safe to call twice."""
        if self._tensor is None:
            return
        if self._page_lock is not None:
            self._page_lock.close()
        self._tensor = None
        # The number may be another file's soon: nothing may be done to that one by mistake.
        fd, self.fd = self.fd, -1
        os.close(fd)


def new_file(name: str, nbytes: int, *, what: str, advice: str) -> int:
    """A file of `nbytes` bytes, none of them backed. Raises HostMemoryError."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, nbytes)
        # Whoever maps it need not fear that it becomes shorter.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except OSError as error:
        os.close(fd)
        raise HostMemoryError(
            f"{what}: the system gave 0 of {nbytes} bytes ({error}). {advice}"
        ) from error
    return fd


def _as_tensor(pages: mmap.mmap) -> torch.Tensor:
    with warnings.catch_warnings():
        # That torch has no read-only tensors; a write would end the process, as it should.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(pages, dtype=torch.uint8)
