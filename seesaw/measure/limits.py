"""What this machine's processor and memory can do at most, measured now: the rates that figures of
kernels are shares of.

By the C++ module, on the threads and with the instruction set of the kernels. Memory speed drifts
by half within minutes, so limits are measured beside what they are compared with: 0.1 s the first
time, 0.05 s after it.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seesaw.errors import ConfigError

LEAST_BUFFER_BYTES = 256 * 2**20
CACHES_IN_BUFFER = 4
"""The buffer is this many times as large as the last cache, so that none of it stays there."""
PAGE_BYTES = 4096
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
PASSES = 5
MULTIPLY_S = 0.003


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of all threads together; a multiply-add is two flops."""

    read_bytes_per_s: float
    bfloat16_flops: float
    float32_flops: float
    isa: str
    num_threads: int

    def flops(self, dtype: str) -> float:
        """Per second in `dtype`: bfloat16 where there is an instruction for it, else float32."""
        return self.bfloat16_flops if dtype == "bfloat16" else self.float32_flops

    def rate(self, what: str, dtype: str) -> float | None:
        """Per second, of `memory` or `matmul` in `dtype`; None for what this machine lacks."""
        if what == "memory":
            return self.read_bytes_per_s
        return self.flops(dtype) if what == "matmul" else None

    def bound_s(self, num_bytes: float, flops: float, dtype: str) -> float:
        """Seconds that work takes at least: the longer of reading and computing."""
        return max(num_bytes / self.read_bytes_per_s, flops / self.flops(dtype))

    def figures(self) -> Mapping[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)

    def describe(self) -> str:
        return (
            f"{self.read_bytes_per_s / 1e9:.1f} GB/s, {self.bfloat16_flops / 1e9:,.0f} GFLOP/s in "
            f"bfloat16, {self.float32_flops / 1e9:,.0f} in float32 "
            f"({self.isa}, {self.num_threads} threads)"
        )


class LimitsProbe:
    """Measures `Limits` as often as asked; keeps a buffer far larger than the last cache.

    Raises ConfigError where the C++ module is not built.
    """

    def __init__(self) -> None:
        try:
            from seesaw import _cpu
        except ImportError as error:
            raise ConfigError(
                "limits of this machine are measured by seesaw._cpu, which is not built here: "
                "install a C++ compiler and install seesaw again (docs/cpu.md)."
            ) from error
        self._cpu = _cpu
        self._num_bytes = max(LEAST_BUFFER_BYTES, CACHES_IN_BUFFER * last_cache_bytes())
        # Written, since pages that never were are all one page of zeros.
        self._buffer = bytearray(b"\1") * (self._num_bytes + PAGE_BYTES)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))
        self._address = -(-start // PAGE_BYTES) * PAGE_BYTES

    def measure(self) -> Limits:
        """The best of some passes each, since others can only slow them. On a thread of its own:
        where kernels have cores, whoever calls them stays on the first one."""
        with ThreadPoolExecutor(1) as own:
            return own.submit(self._measure).result()

    def _measure(self) -> Limits:
        cpu = self._cpu
        return Limits(
            read_bytes_per_s=max(
                cpu.read_rate(self._address, self._num_bytes) for _ in range(PASSES)
            ),
            bfloat16_flops=max(cpu.multiply_rate("bfloat16", MULTIPLY_S) for _ in range(PASSES)),
            float32_flops=max(cpu.multiply_rate("float32", MULTIPLY_S) for _ in range(PASSES)),
            isa=cpu.isa(),
            num_threads=cpu.num_threads(),
        )


def last_cache_bytes(caches: Path = CACHES) -> int:
    """Of the largest cache that the first core uses; 0 where the system does not say."""
    found = [0]
    for size in caches.glob("index*/size"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            text = size.read_text().strip()
            found.append(int(text[:-1]) * UNITS[text[-1]])
    return max(found)
