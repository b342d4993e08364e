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

_PORTABLE, _MAPPED = 1, 2
"""For all contexts; readable and writable by kernels, at the same address."""


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
        self._registered_bytes = 0
        self._changed = threading.Condition()
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
            with self._changed:
                self._changed.notify_all()
                if code != 0:
                    self._refused = HostMemoryError(
                        f"CUDA refused to page-lock host memory (error {code}) after {start} of "
                        f"{self._nbytes} bytes. Raise the limit of locked memory (ulimit -l), or "
                        "lower host_kv_memory."
                    )
                    return
                self._registered.append(self._address + start)
                self._registered_bytes = start + size

    def wait(self, stop: int | None = None, timeout_s: float | None = None) -> bool:
        """Until the first `stop` bytes are registered, None for all; False where the time is over
        before. Raises HostMemoryError where CUDA refused."""
        wanted = self._nbytes if stop is None else min(stop, self._nbytes)
        with self._changed:
            self._changed.wait_for(
                lambda: self._registered_bytes >= wanted or self._is_over(), timeout_s
            )
            if self._registered_bytes >= wanted:
                return True
        self.check()
        return False

    def _is_over(self) -> bool:
        return self._refused is not None or self._stop.is_set()

    def check(self) -> None:
        """Raises HostMemoryError where CUDA has refused by now."""
        if self._refused is not None:
            raise self._refused

    def close(self) -> None:
        """Unregister what is registered; to be called before the memory is unmapped."""
        with self._changed:
            self._stop.set()
            self._changed.notify_all()
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
            return int(_cudart().cudaHostRegister(address, nbytes, _PORTABLE | _MAPPED))

    def unregister(self, address: int) -> int:
        with torch.cuda.device(self._device):
            return int(_cudart().cudaHostUnregister(address))


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
