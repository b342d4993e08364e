"""Registers host memory with CUDA piece by piece in the background, so that copies to and from it
need no second hop and a process need not wait for gigabytes to be locked.

Owns the registration only; the memory is the caller's and must outlive `close`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from seesaw.errors import HostMemoryError


class PageLock:
    """Registration of `nbytes` bytes at `address` in pieces of `piece_bytes`, begun at once.

    `register(address, nbytes)` and `unregister(address)` return 0 or CUDA's error code (see
    `CudaHostMemory`).
    """

    def __init__(
        self,
        address: int,
        nbytes: int,
        piece_bytes: int,
        register: Callable[[int, int], int],
        unregister: Callable[[int], int],
    ) -> None:
        self._address = address
        self._nbytes = nbytes
        self._piece_bytes = piece_bytes
        self._register = register
        self._unregister = unregister
        self._registered: list[int] = []
        self._refused: HostMemoryError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="seesaw-page-lock", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for start in range(0, self._nbytes, self._piece_bytes):
            if self._stop.is_set():
                return
            size = min(self._piece_bytes, self._nbytes - start)
            code = self._register(self._address + start, size)
            if code != 0:
                self._refused = HostMemoryError(
                    f"CUDA refused to page-lock host memory (error {code}) after {start} of "
                    f"{self._nbytes} bytes. Raise the limit of locked memory (ulimit -l), or lower "
                    "host_kv_memory."
                )
                return
            self._registered.append(self._address + start)

    def wait(self) -> None:
        """Until all is registered. Raises HostMemoryError where CUDA refused."""
        self._thread.join()
        self.check()

    def check(self) -> None:
        """Raises HostMemoryError where CUDA has refused by now."""
        if self._refused is not None:
            raise self._refused

    def close(self) -> None:
        """Unregister what is registered; to be called before the memory is unmapped."""
        self._stop.set()
        self._thread.join()
        while self._registered:
            self._unregister(self._registered.pop())


class CudaHostMemory:
    """cudaHostRegister and cudaHostUnregister in the context of one device (a thread of its own
    would make one on the first device)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def register(self, address: int, nbytes: int) -> int:
        with torch.cuda.device(self._device):
            return int(_cudart().cudaHostRegister(address, nbytes, 0))

    def unregister(self, address: int) -> int:
        with torch.cuda.device(self._device):
            return int(_cudart().cudaHostUnregister(address))


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
