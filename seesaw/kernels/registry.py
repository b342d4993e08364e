"""Finds kernels by their files."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable
from typing import Any

import seesaw.kernels as package
from seesaw.kernels.kernel import Kernel


def launcher(op: str) -> Callable[..., Any] | None:
    """The function `<op>` of kernels/<op>.py; None where there is no such file."""
    name = f"{package.__name__}.{op}"
    if importlib.util.find_spec(name) is None:
        return None
    found: Callable[..., Any] = getattr(importlib.import_module(name), op)
    return found


@functools.cache
def kernels() -> dict[str, Kernel]:
    """Every kernel by name: what the files of this package list in `KERNELS`."""
    found: dict[str, Kernel] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for kernel in getattr(module, "KERNELS", ()):
            assert kernel.name not in found, f"two kernels are called {kernel.name}"
            assert kernel.op == info.name, f"{info.name}.py holds {kernel.name}"
            found[kernel.name] = kernel
    return found
