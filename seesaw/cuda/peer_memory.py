"""Memory of several GPUs of a host that processes, one for each, map: by CUDA's IPC handles, which
they tell each other. The sums are `peer_sum`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

_LAZY_ENABLE_PEER_ACCESS = 1


class PeerMemory:
    """`nbytes` zeroed bytes of this process's GPU. `open` maps those of the others. Raises whatever
    CUDA raises, where GPUs cannot reach each other too."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        from cupy.cuda import runtime

        self._runtime = runtime
        self._device = device
        self._opened: list[int] = []
        with torch.cuda.device(device):
            # Not torch's: handles are of whole allocations, and these must stay where they are.
            self._own: int = runtime.malloc(nbytes)
            runtime.memset(self._own, 0, nbytes)
            runtime.streamSynchronize(0)
            self.handle = bytes(runtime.ipcGetMemHandle(self._own)).hex()

    def open(self, handles: Sequence[str], rank: int) -> list[int]:
        """Addresses of the memory of all ranks, in order of rank, `handles` being theirs."""
        addresses = []
        with torch.cuda.device(self._device):
            for other, handle in enumerate(handles):
                if other == rank:
                    addresses.append(self._own)
                    continue
                self._opened.append(
                    self._runtime.ipcOpenMemHandle(bytes.fromhex(handle), _LAZY_ENABLE_PEER_ACCESS)
                )
                addresses.append(self._opened[-1])
        return addresses

    def close_peers(self) -> None:
        """Map only what is this process's own. Nothing may be under way that reads the others'."""
        with torch.cuda.device(self._device):
            while self._opened:
                self._runtime.ipcCloseMemHandle(self._opened.pop())

    def close(self) -> None:
        """Give it back; no other process may map it any more."""
        self.close_peers()
        if self._own:
            with torch.cuda.device(self._device):
                self._runtime.free(self._own)
            self._own = 0
