"""Resident memory of this process as the kernel counts it: for the scripts that tests measure."""

from __future__ import annotations

from pathlib import Path


def status_bytes(name: str) -> int:
    """`VmRSS`, what is resident now; `VmHWM`, the most so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {name} in /proc/self/status")
