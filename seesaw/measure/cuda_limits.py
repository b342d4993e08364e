"""What a CUDA device can do at most, measured now: the rates that figures of kernels are shares of.

Medians of work of some milliseconds, so that a figure is what the device sustains, at the clocks it
has then. Half a second. Imports torch.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from seesaw.measure.cuda_clock import CudaClock
from seesaw.measure.timer import Clock, alternate

COPY_BYTES = 2**30
LINK_BYTES = 2**28
MATMUL_SIZE = 8192
FLOAT32_SIZE = 4096
BATCHES = 7
STATE = ("clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "power.limit", "temperature.gpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaLimits:
    """A copy within the device's memory counts what it reads and what it writes; a multiply-add is
    two flops; copies to and from the host are of page-locked memory, `duplex` counts both ways of
    two at the same time."""

    copy_bytes_per_s: float
    bfloat16_flops: float
    float32_flops: float
    to_host_bytes_per_s: float
    to_device_bytes_per_s: float
    duplex_bytes_per_s: float

    def rate(self, what: str, dtype: str) -> float | None:
        """Per second: of `memory`, `to_host`, `to_device`, `duplex`, or of `matmul` in `dtype`."""
        return {
            "memory": self.copy_bytes_per_s,
            "matmul": self.float32_flops if dtype == "float32" else self.bfloat16_flops,
            "to_host": self.to_host_bytes_per_s,
            "to_device": self.to_device_bytes_per_s,
            "duplex": self.duplex_bytes_per_s,
        }.get(what)

    def figures(self) -> Mapping[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)

    def describe(self) -> str:
        return (
            f"copy {self.copy_bytes_per_s / 1e9:,.0f} GB/s, matmul "
            f"{self.bfloat16_flops / 1e12:,.0f} TFLOP/s in bfloat16, "
            f"{self.float32_flops / 1e12:,.0f} in float32; host link "
            f"{self.to_host_bytes_per_s / 1e9:.1f} GB/s out, "
            f"{self.to_device_bytes_per_s / 1e9:.1f} in, "
            f"{self.duplex_bytes_per_s / 1e9:.1f} both at once"
        )


class CudaLimitsProbe:
    """Measures `CudaLimits` as often as asked; keeps 2.7 GiB of the device's memory and 512 MiB of
    the host's, page-locked, meanwhile."""

    def __init__(self, device: torch.device, clock: Clock | None = None) -> None:
        self._clock = CudaClock(device) if clock is None else clock
        self._to, self._from = (_bytes(COPY_BYTES, device) for _ in range(2))
        self._host_to, self._host_from = (_pinned(LINK_BYTES) for _ in range(2))
        self._wide = [_square(MATMUL_SIZE, torch.bfloat16, device) for _ in range(2)]
        self._exact = [_square(FLOAT32_SIZE, torch.float32, device) for _ in range(2)]
        self._streams = [
            torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            for _ in range(2)
        ]

    def measure(self) -> CudaLimits:
        calls: dict[str, Callable[[], object]] = {
            "copy": lambda: self._to.copy_(self._from),
            "bfloat16": lambda: self._wide[0] @ self._wide[1],
            "float32": lambda: self._exact[0] @ self._exact[1],
            "to_host": lambda: self._host_to.copy_(self._from[:LINK_BYTES], non_blocking=True),
            "to_device": lambda: self._to[:LINK_BYTES].copy_(self._host_from, non_blocking=True),
            "duplex": self._both_ways,
        }
        work = {
            "copy": 2 * COPY_BYTES,
            "bfloat16": 2 * MATMUL_SIZE**3,
            "float32": 2 * FLOAT32_SIZE**3,
            "to_host": LINK_BYTES,
            "to_device": LINK_BYTES,
            "duplex": 2 * LINK_BYTES,
        }
        allowed = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            found = alternate(calls, batches=BATCHES, clock=self._clock)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = allowed
        rates = {name: work[name] / found[name].median_s for name in work}
        return CudaLimits(
            copy_bytes_per_s=rates["copy"],
            bfloat16_flops=rates["bfloat16"],
            float32_flops=rates["float32"],
            to_host_bytes_per_s=rates["to_host"],
            to_device_bytes_per_s=rates["to_device"],
            duplex_bytes_per_s=rates["duplex"],
        )

    def _both_ways(self) -> None:
        current = torch.cuda.current_stream()
        ways = (
            (self._host_to, self._from[:LINK_BYTES]),
            (self._to[:LINK_BYTES], self._host_from),
        )
        for stream, (target, source) in zip(self._streams, ways, strict=True):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                target.copy_(source, non_blocking=True)
        for stream in self._streams:
            current.wait_stream(stream)


def gpu_state(device: torch.device) -> dict[str, str]:
    """Clocks, power and temperature as nvidia-smi tells them now; empty without it."""
    uuid = torch.cuda.get_device_properties(device).uuid
    query = f"--query-gpu={','.join(STATE)}"
    command = ["nvidia-smi", query, "--format=csv,noheader", f"--id=GPU-{uuid}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(STATE, (part.strip() for part in done.stdout.split(",")), strict=False))


def _square(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.randn(size, size, dtype=dtype, device=device)


def _bytes(size: int, device: torch.device) -> torch.Tensor:
    return torch.ones(size, dtype=torch.uint8, device=device)


def _pinned(size: int) -> torch.Tensor:
    return torch.ones(size, dtype=torch.uint8, pin_memory=True)
