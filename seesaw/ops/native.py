"""Which ops the C++ kernels of seesaw._cpu compute: those on the CPU in bfloat16 or float32, where
the module is built and SEESAW_KERNELS does not ask for plain torch.

Knows no particular op; each op decides with `usable` and calls the module that `native` returns.
"""

from __future__ import annotations

import functools
from types import ModuleType

import torch

from seesaw import envs

_DTYPES = (torch.bfloat16, torch.float32)


@functools.cache
def native() -> ModuleType | None:
    """seesaw._cpu; None where it is not built or SEESAW_KERNELS=torch. Found once."""
    if envs.kernels() == "torch":
        return None
    try:
        from seesaw import _cpu
    except ImportError:
        return None
    return _cpu


def usable(*tensors: torch.Tensor) -> bool:
    """Whether kernels take these: all on the CPU, of one dtype, bfloat16 or float32."""
    dtype = tensors[0].dtype
    return dtype in _DTYPES and all(x.is_cpu and x.dtype == dtype for x in tensors)
