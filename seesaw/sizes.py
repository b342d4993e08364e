"""Bytes and cores as people write and read them."""

from __future__ import annotations

import re

from seesaw.errors import ConfigError

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
          "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}  # fmt: skip


def parse_bytes(text: str | int, name: str = "size") -> int:
    """`2GiB`, `500 MB` or a plain number of bytes -> bytes. Raises ConfigError naming `name`."""
    if isinstance(text, int) and not isinstance(text, bool):
        value: float = text
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(text))
        if not match or match[2].lower() not in _UNITS:
            raise ConfigError(f"{name}={text!r}: expected bytes such as 2GiB, 500MB or 1073741824.")
        value = float(match[1]) * _UNITS[match[2].lower()]
    if not 1 <= value < 2**63:
        raise ConfigError(f"{name}={text!r}: expected from 1 byte to 8 EiB.")
    return int(value)


def format_bytes(num_bytes: float) -> str:
    """Bytes for people: `1.53 GiB`."""
    value, unit = float(num_bytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} B" if unit == "B" else f"{value:.2f} {unit}"


def parse_cores(text: str) -> tuple[int, ...]:
    """The cores of a list such as `0-3,8`, in its order. Raises ConfigError."""
    cores: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part.strip())
        if match is None:
            raise ConfigError(f"cpu_cores={text!r}: expected cores such as 0-3,8.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ConfigError(f"cpu_cores={text!r}: {part.strip()} ends before it begins.")
        cores += range(first, last + 1)
    if len(set(cores)) < len(cores):
        raise ConfigError(f"cpu_cores={text!r}: a core is named twice.")
    return tuple(cores)
