"""Brings the numbers that one step needs from Python to a device in one copy.

On CUDA the copy starts from pinned memory and nobody waits for it; PyTorch's allocator of pinned
memory keeps the block until the copy has run.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import torch

_DTYPES = {"i": torch.int32, "q": torch.int64, "f": torch.float32, "d": torch.float64}
_ALIGNMENT = 16


def upload(device: torch.device, *columns: tuple[str, Iterable[float]]) -> list[torch.Tensor]:
    """A tensor `[len(values)]` for each (type code of `array`: i, q, f or d, values)."""
    packed = bytearray()
    places = []
    for code, values in columns:
        packed.extend(bytes(-len(packed) % _ALIGNMENT))
        numbers = array(code, values)
        places.append((len(packed), len(packed) + len(numbers) * numbers.itemsize, _DTYPES[code]))
        packed.extend(numbers.tobytes())
    if not packed:
        return [torch.empty(0, dtype=dtype, device=device) for _, _, dtype in places]
    there = torch.frombuffer(packed, dtype=torch.uint8)
    if device.type == "cuda":
        there = there.pin_memory().to(device, non_blocking=True)
    return [there[start:stop].view(dtype) for start, stop, dtype in places]
