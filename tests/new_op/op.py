"""Doubles: out = 2 x. Bytes: x read and out written once."""

from __future__ import annotations

import torch

from seesaw.ops.registry import EXACT, Bench, Case, Cost, Door, Op
from seesaw.ops.triton_backend import on_triton


def double(x_N: torch.Tensor) -> torch.Tensor:
    """`[N]` -> `[N]`, contiguous, of the same dtype."""
    if on_triton(x_N):
        from seesaw.kernels.double import double as launch

        return launch(x_N)
    return 2 * x_N


def _make_inputs(generator: torch.Generator, case: Case, dtype: torch.dtype) -> dict[str, object]:
    return {"x_N": torch.randn(case["size"], generator=generator).to(dtype)}


OP = Op(
    name="double",
    function=double,
    reference=lambda x_N: (2 * x_N.double()).to(x_N.dtype),
    make_inputs=_make_inputs,
    cases=({"size": 0}, {"size": 1}, {"size": 777}),
    tolerance=dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), EXACT),
    cost=lambda case, dtype: Cost(2 * case["size"] * dtype.itemsize, case["size"]),
    bench={"16M": Bench(case={"size": 2**24}), "small": Bench(case={"size": 4096})},
    door=Door(double, lambda x: x.new_empty(x.shape)),
)
