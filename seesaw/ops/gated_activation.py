"""The gate of an MLP: out = act(gate) * up, with act = SiLU or tanh-approximated GELU.

Bytes: 3 T I elements (two read, one written); about 10 flops per output element: memory-bound.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

from seesaw.ops.native import native, usable
from seesaw.ops.registry import FLOAT_TOLERANCE, Bench, Case, Cost, Door, Op
from seesaw.ops.shapes import LLAMA_8B, SMALL
from seesaw.ops.triton_backend import on_triton

# Shape letters: T tokens, I intermediate size.

Activation = Literal["silu", "gelu_pytorch_tanh"]


def gated_activation(gate_up_TJ: torch.Tensor, activation: Activation) -> torch.Tensor:
    """`[T, 2 I]`, gate columns before up columns -> `[T, I]` of the same dtype.

    Kernels round once; plain torch rounds the activation to the dtype before the product, as the
    models' own code does.
    """
    if on_triton(gate_up_TJ):
        from seesaw.kernels.gated_activation import gated_activation as launch

        return launch(gate_up_TJ, activation)
    cpu = native()
    if cpu is not None and usable(gate_up_TJ) and gate_up_TJ.stride(1) == 1:
        tokens, size = len(gate_up_TJ), gate_up_TJ.shape[1] // 2
        out_TI = gate_up_TJ.new_empty(tokens, size)
        cpu.gated_activation(
            itemsize=gate_up_TJ.itemsize,
            gelu=activation != "silu",
            rows=tokens,
            size=size,
            x=gate_up_TJ.data_ptr(),
            ld_x=gate_up_TJ.stride(0),
            out=out_TI.data_ptr(),
        )
        return out_TI
    gate_TI, up_TI = gate_up_TJ.chunk(2, -1)
    if activation == "silu":
        return F.silu(gate_TI).mul_(up_TI)
    return F.gelu(gate_TI, approximate="tanh").mul_(up_TI)


def gated_activation_reference(gate_up_TJ: torch.Tensor, activation: Activation) -> torch.Tensor:
    gate, up = gate_up_TJ.double().chunk(2, -1)
    if activation == "silu":
        act = gate / (1 + (-gate).exp())
    else:
        inner = (2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)
        act = 0.5 * gate * (1 + inner.tanh())
    return (act * up).to(gate_up_TJ.dtype)


def _make_inputs(generator: torch.Generator, case: Case, dtype: torch.dtype) -> dict[str, object]:
    gate_up = torch.randn(case["tokens"], 2 * case["intermediate"], generator=generator).to(dtype)
    return {"gate_up_TJ": gate_up, "activation": case["activation"]}


def _cost(case: Case, dtype: torch.dtype) -> Cost:
    elements = case["tokens"] * case["intermediate"]
    return Cost(3 * elements * dtype.itemsize, 10 * elements)


OP = Op(
    name="gated_activation",
    function=gated_activation,
    reference=gated_activation_reference,
    make_inputs=_make_inputs,
    cases=tuple(
        {"tokens": tokens, "intermediate": size, "activation": activation}
        for tokens, size in ((0, 8), (1, 1), (1, 1536), (19, 77), (64, 2048))
        for activation in ("silu", "gelu_pytorch_tanh")
    ),
    tolerance=FLOAT_TOLERANCE,
    cost=_cost,
    door=Door(gated_activation, lambda x, _: x.new_empty(len(x), x.shape[1] // 2)),
    bench={
        f"{model.name}, {tokens} tokens": Bench(
            case={
                "tokens": tokens,
                "intermediate": model.inner,
                "activation": model.activation,
            }
        )
        for model in (*SMALL, LLAMA_8B)
        for tokens in (1, 64, 2048)
    },
)
