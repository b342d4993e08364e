"""Which ops Triton's kernels compute: those on a GPU of sm_80 or newer, where Triton is installed
and SEESAW_KERNELS does not ask for plain torch; with SEESAW_KERNELS=triton those on the CPU too,
in Triton's interpreter.

Knows no particular op; each op asks `on_triton` and calls the launcher of its stem in `kernels`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Iterator

import torch

from seesaw import envs
from seesaw.log import get_logger

LEAST_CAPABILITY = (8, 0)

logger = get_logger(__name__)
_plain = False


def on_triton(x: torch.Tensor) -> bool:
    """Whether Triton's kernels compute what lies where `x` does."""
    return not _plain and runs_on(x.device)


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """Within it no Triton kernel computes: what these are compared with."""
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


@functools.cache
def runs_on(device: torch.device) -> bool:
    """Whether Triton's kernels compute on `device`. Decided once per device: tests that change the
    environment call `runs_on.cache_clear()`."""
    asked = envs.kernels()
    if device.type == "cpu":
        return asked == "triton"
    if device.type != "cuda" or asked == "torch":
        return False
    why = None
    if importlib.util.find_spec("triton") is None:
        why = "Triton is not installed (pip install triton)"
    elif torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        why = f"{torch.cuda.get_device_name(device)} is older than sm_80"
    if why is not None:
        logger.warning("plain torch computes on %s, slowly: %s.", device, why)
    return why is None
