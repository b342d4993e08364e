"""The number of threads of the C++ kernels, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def threads(number: int) -> Iterator[None]:
    from seesaw import _cpu

    before = _cpu.num_threads()
    _cpu.configure_threads(number)
    try:
        yield
    finally:
        _cpu.configure_threads(before)
