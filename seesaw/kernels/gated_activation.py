"""The gate of an MLP (formula and bytes: ops/gated_activation.py).

One program computes `BLOCK` columns of a row. Tanh-GELU is taken as x * sigmoid(2 u), which is the
same function and needs no tanh.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from seesaw.kernels.checks import FLOATS, expect, expect_one_of, expect_tensors
from seesaw.kernels.kernel import Build, Config, Kernel, Key, Target
from seesaw.kernels.tuning import config_for

# Shape letters: T tokens, I intermediate size, J = 2 I.

OP = "gated_activation"
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")
_MAX_COLUMNS = 2**24


@triton.jit
def _gated_activation_kernel(
    gate_up_ptr, out_ptr, row_stride, size, GELU: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    source = gate_up_ptr + row * row_stride + column
    gate = tl.load(source, mask=inside, other=0.0)
    up = tl.load(source + size, mask=inside, other=0.0).to(tl.float32)
    x = gate.to(tl.float32)
    if GELU:
        inner = 1.5957691216057308 * (x + 0.044715 * x * x * x)  # 2 sqrt(2 / pi)
    else:
        inner = x
    out = x / (1.0 + tl.exp(-inner)) * up
    tl.store(out_ptr + row * size + column, out.to(gate.dtype), mask=inside)


def gated_activation(gate_up_TJ: torch.Tensor, activation: str) -> torch.Tensor:
    """As `ops.gated_activation`; rounds once. Rows may lie at any distance. Raises
    UnsupportedError."""
    expect_tensors(OP, FLOATS, gate_up=gate_up_TJ)
    expect_one_of(OP, "activation", activation, ACTIVATIONS)
    expect(OP, "dims of gate_up", gate_up_TJ.dim(), 2, gate_up_TJ.dim() == 2)
    columns = gate_up_TJ.shape[1]
    expect(OP, "columns of gate_up", columns, f"an even number up to {_MAX_COLUMNS}",
           columns % 2 == 0 and columns <= _MAX_COLUMNS)  # fmt: skip
    expect(OP, "distance of columns", gate_up_TJ.stride(1), 1,
           gate_up_TJ.stride(1) == 1 or columns <= 1)  # fmt: skip
    tokens, size = len(gate_up_TJ), columns // 2
    out_TI = gate_up_TJ.new_empty(tokens, size)
    if out_TI.numel():
        config = config_for(KERNEL, gate_up_TJ.device, size=size)
        grid = (tokens, triton.cdiv(size, config.blocks["BLOCK"]))
        _gated_activation_kernel[grid](
            gate_up_TJ,
            out_TI,
            gate_up_TJ.stride(0),
            size,
            GELU=activation != "silu",
            **config.arguments(),
        )
    return out_TI


def _default(key: Key, target: Target) -> Config:
    block = min(1024, triton.next_power_of_2(int(key["size"])))
    return Config({"BLOCK": block}, num_warps=max(1, block // 256))


def _candidates(key: Key, target: Target) -> tuple[Config, ...]:
    most = triton.next_power_of_2(int(key["size"]))
    return tuple(
        Config({"BLOCK": block}, num_warps=num_warps)
        for block in (256, 512, 1024, 2048, 4096)
        for num_warps in (1, 2, 4, 8)
        if block <= max(256, most) and 64 <= block // num_warps <= 1024
    )


def _build(size: int, dtype: str, gelu: bool) -> Build:
    return Build(
        key={"size": size},
        signature={"gate_up_ptr": dtype, "out_ptr": dtype, "row_stride": "i32", "size": "i32"},
        constants={"GELU": gelu},
        aligned=("gate_up_ptr", "out_ptr", "row_stride", "size"),
    )


KERNEL = Kernel(
    name="gated_activation",
    function=_gated_activation_kernel,
    builds=(
        _build(1536, "*bf16", False),
        _build(14336, "*bf16", False),
        _build(14336, "*fp16", False),
        _build(6912, "*bf16", True),
        _build(14336, "*fp32", False),
    ),
    default=_default,
    candidates=_candidates,
)
KERNELS = (KERNEL,)
