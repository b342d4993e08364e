"""Which ops the C++ kernels of seesaw._cpu compute: those on the CPU in bfloat16 or float32, where
the module is built and SEESAW_KERNELS does not ask for plain torch.

Knows no particular op; each op decides with `usable` and calls the module that `native` returns.
"""

from __future__ import annotations

import functools
from types import ModuleType

import torch

from seesaw import envs
from seesaw.errors import ConfigError

SLOWDOWN = "2 to 4 times"
"""Of plain torch on SmolLM2-135M in bfloat16, over the workloads of bench/RESULTS.md."""

_DTYPES = (torch.bfloat16, torch.float32)


@functools.cache
def native() -> ModuleType | None:
    """seesaw._cpu; None where it is not built or SEESAW_KERNELS=torch. Found once.

    Raises ConfigError where SEESAW_CPU_ISA names no instruction set of this processor.
    """
    if envs.kernels() != "auto":
        return None
    try:
        from seesaw import _cpu
    except ImportError:
        return None
    try:
        _cpu.isa()
    except ValueError as error:
        told = str(error)
        if not told.startswith("SEESAW_CPU_ISA"):
            told = f"SEESAW_CPU_ISA: {told}. Unset it or set it to one of these."
        raise ConfigError(told) from None
    return _cpu


def why_plain_torch() -> str | None:
    """Why no kernels run on CPUs here, what that costs and what mends it; None where they do."""
    if native() is not None:
        return None
    asked = f"SEESAW_KERNELS=torch, which makes answers take {SLOWDOWN} as long. Unset it."
    if envs.kernels() == "torch":
        return asked
    try:
        from seesaw import _cpu  # noqa: F401
    except ImportError as error:
        return (
            f"the C++ kernels are not built here ({error}), so answers take {SLOWDOWN} as long. "
            "Install a compiler (sudo apt-get install -y g++ python3-dev), then seesaw again: "
            "make setup, or pip install --force-reinstall --no-deps and what you gave it before."
        )
    return f"at the first use in this process there was {asked}"


def usable(*tensors: torch.Tensor) -> bool:
    """Whether kernels take these: all on the CPU, of one dtype, bfloat16 or float32."""
    dtype = tensors[0].dtype
    return dtype in _DTYPES and all(x.is_cpu and x.dtype == dtype for x in tensors)
