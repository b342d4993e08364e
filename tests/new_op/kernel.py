"""Doubling (ops/double.py)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from seesaw.kernels.checks import FLOATS, expect_tensors
from seesaw.kernels.kernel import Build, Config, Kernel
from seesaw.kernels.tuning import config_for


@triton.jit
def _double_kernel(x_ptr, out_ptr, size, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    tl.store(out_ptr + place, 2 * tl.load(x_ptr + place, mask=inside), mask=inside)


def double(x_N: torch.Tensor) -> torch.Tensor:
    """As `ops.double`. Raises UnsupportedError."""
    expect_tensors("double", FLOATS, x=x_N)
    out_N = torch.empty_like(x_N)
    if len(x_N):
        config = config_for(KERNEL, x_N.device)
        grid = (triton.cdiv(len(x_N), config.blocks["BLOCK"]),)
        _double_kernel[grid](x_N, out_N, len(x_N), **config.arguments())
    return out_N


KERNEL = Kernel(
    name="double",
    function=_double_kernel,
    builds=(
        Build(
            key={},
            signature={"x_ptr": "*bf16", "out_ptr": "*bf16", "size": "i32"},
            aligned=("x_ptr", "out_ptr"),
        ),
    ),
    default=lambda key, target: Config({"BLOCK": 1024}),
    candidates=lambda key, target: tuple(Config({"BLOCK": block}) for block in (512, 1024, 2048)),
)
KERNELS = (KERNEL,)
