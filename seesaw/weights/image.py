"""The host image: all parameters of a model once per machine, in memory that every rank maps.

Owns the file, the mapping and their end. What lies where is the format's business (`layout`), what
is copied from it that of `reshard.py`.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import warnings

import torch

from seesaw.config import format_bytes
from seesaw.errors import HostMemoryError
from seesaw.kvcache.page_lock import CudaHostMemory, PageLock
from seesaw.layout.format import StoredParam, WeightFormat

COMMIT_BYTES = 64 << 20
"""Memory is taken in system calls of this much, since a signal makes such a call begin again."""

PAGE_LOCK_BYTES = 256 << 20
"""What is registered with CUDA at a time."""


class WeightImage:
    """Parameters in the order and at the offsets of `fmt`.

    A file without a name (memfd), so that nothing stays behind however a process ends. Who creates
    it fills it (`load_image`) and hands `fd` to the ranks, which `attach` it and only read.
    """

    def __init__(self, fd: int, fmt: WeightFormat, *, writable: bool) -> None:
        """`fd` is the image's from here on. Use `create` or `attach`."""
        self.fd = fd
        self.fmt = fmt
        self._page_lock: PageLock | None = None
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        try:
            pages = mmap.mmap(fd, fmt.image_bytes, mmap.MAP_SHARED, protection)
        except OSError as error:
            os.close(fd)
            raise _refused(fmt, f"did not map it ({error})") from error
        # The tensor keeps the mapping alive: it ends with the last view, never under a reader.
        self._bytes: torch.Tensor | None = _as_tensor(pages)

    @classmethod
    def create(cls, fmt: WeightFormat) -> WeightImage:
        """A new image, backed with memory and all zero. Raises HostMemoryError."""
        fd = os.memfd_create("seesaw-weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        done = 0
        try:
            os.ftruncate(fd, fmt.image_bytes)
            # Whoever maps it need not fear that it becomes shorter.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            while done < fmt.image_bytes:
                size = min(COMMIT_BYTES, fmt.image_bytes - done)
                os.posix_fallocate(fd, done, size)
                done += size
        except OSError as error:
            os.close(fd)
            raise _refused(fmt, f"gave {format_bytes(done)} ({error})") from error
        return cls(fd, fmt, writable=True)

    @classmethod
    def attach(
        cls, fd: int, fmt: WeightFormat, page_lock_for: torch.device | None = None
    ) -> WeightImage:
        """The image of another process, whose file `fd` becomes this one's. Raises HostMemoryError,
        and ValueError where the file is not one of `fmt`.

        `page_lock_for`: a GPU for which to begin to register it with CUDA, in the background;
        copies work meanwhile, slower. It is then mapped writable, since CUDA refuses what is not,
        else read-only.
        """
        size = os.fstat(fd).st_size
        if size != fmt.image_bytes:
            os.close(fd)
            raise ValueError(f"file of weights: got {size} bytes, expected {fmt.image_bytes}")
        image = cls(fd, fmt, writable=page_lock_for is not None)
        if page_lock_for is not None:
            cuda = CudaHostMemory(page_lock_for)
            image._page_lock = PageLock(
                image.bytes.data_ptr(), size, PAGE_LOCK_BYTES, cuda.register, cuda.unregister
            )
        return image

    @property
    def bytes(self) -> torch.Tensor:
        """All of it, uint8 `[image_bytes]`."""
        if self._bytes is None:
            raise ValueError("the image of the weights is closed")
        return self._bytes

    def view(self, param: StoredParam, dtype: torch.dtype) -> torch.Tensor:
        """`param` in its stored shape."""
        start = self.fmt.image_offsets[param.name]
        return self.bytes[start : start + self.fmt.nbytes(param)].view(dtype).view(param.shape)

    def copy_to(self, target: torch.Tensor, offset: int) -> None:
        """Fill `target`, contiguous uint8 on any device, from `offset` on; on a GPU in the order of
        the current stream."""
        done = 0
        while done < target.nbytes:
            # A CUDA copy must not cross from one registered piece to the next.
            room = PAGE_LOCK_BYTES - (offset + done) % PAGE_LOCK_BYTES
            part = target[done : done + room]
            start = offset + done
            part.copy_(self.bytes[start : start + part.nbytes], non_blocking=True)
            done += part.nbytes

    def check_page_lock(self, *, wait: bool = False) -> None:
        """Raises HostMemoryError where CUDA has refused to page-lock it. `wait`: until all is."""
        if self._page_lock is not None:
            if wait:
                self._page_lock.wait()
            self._page_lock.check()

    def close(self) -> None:
        """Give the file back, and the mapping as soon as no view is left. Copies must be through.
        Safe to call twice."""
        if self._bytes is None:
            return
        if self._page_lock is not None:
            self._page_lock.close()
        self._bytes = None
        os.close(self.fd)


def _as_tensor(pages: mmap.mmap) -> torch.Tensor:
    with warnings.catch_warnings():
        # That torch has no read-only tensors; a write would end the process, as it should.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(pages, dtype=torch.uint8)


def _refused(fmt: WeightFormat, what: str) -> HostMemoryError:
    return HostMemoryError(
        f"the weights take {format_bytes(fmt.image_bytes)} of host memory, shared by all ranks, "
        f"and the system {what}. Free memory, raise the container's limit, use a smaller dtype or "
        "model, or one device, which needs no copy on the host."
    )
