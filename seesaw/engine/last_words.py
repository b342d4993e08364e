"""What a rank that fails says of its error: one line for people, with what to do where memory ran
out.
"""

from __future__ import annotations

import resource

import psutil
import torch

from seesaw.errors import SeesawError
from seesaw.sizes import format_bytes

_REFUSED = ("can't allocate memory", "out of memory")
"""What torch says in a RuntimeError where the system has no memory left; it names the bytes."""


def describe(error: BaseException) -> str:
    """`RuntimeError: what it says`; for memory that was refused also what the process holds."""
    line = f"{type(error).__name__}: {error}"
    if not _out_of_memory(error):
        return line
    held = psutil.Process().memory_info()
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    most = "" if limit == resource.RLIM_INFINITY else f", of at most {format_bytes(limit)} mapped"
    return (
        f"out of memory. {line} (the process holds {format_bytes(held.rss)} of RAM and maps "
        f"{format_bytes(held.vms)}{most}). Lower device_memory, host_kv_memory or "
        "max_num_batched_tokens, or free memory."
    )


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether it comes of that; seesaw's own errors say so themselves."""
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return not isinstance(error, SeesawError)
        if isinstance(error, RuntimeError) and any(word in str(error) for word in _REFUSED):
            return not isinstance(error, SeesawError) or _out_of_memory(error.__cause__)
        error = error.__cause__
    return False
