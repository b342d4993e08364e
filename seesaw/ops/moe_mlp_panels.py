"""`moe_mlp` over experts in panels, as CPUs keep them: each expert's matrices are those of
`linear_gated` and `linear`.

    out[t] = sum over n of weights[t, n] * down_e(act(gate_e x[t]) * up_e x[t]),  e = experts[t, n]

Bytes and flops of `moe_mlp`. Rows of tokens are put together by expert; the matrices of all experts
that have a token are one loop over the threads (csrc/cpu/moe.h).
"""

from __future__ import annotations

import torch

from seesaw.layout.panels import PANEL
from seesaw.layout.ranges import MLP_TILE
from seesaw.ops.gated_activation import Activation
from seesaw.ops.moe_mlp import OP as PLAIN
from seesaw.ops.moe_mlp import moe_mlp, moe_mlp_reference
from seesaw.ops.native import native, usable
from seesaw.ops.panels import pack, unpack
from seesaw.ops.registry import Bench, Case, Door, Op

# Shape letters: T tokens, H hidden, E experts that this rank holds, I an expert's inner size, J =
# 2 I, N experts of a token, P and Q panels of gate and up and of down, Z = 32 columns of one.


def moe_mlp_panels(
    x_TH: torch.Tensor,
    gate_up_EPHZ: torch.Tensor,
    down_EQIZ: torch.Tensor,
    weights_TN: torch.Tensor,
    experts_TN: torch.Tensor,
    *,
    first_expert: int = 0,
    activation: Activation = "silu",
    counts_E: torch.Tensor | None = None,
) -> torch.Tensor:
    """`[T, H]` of x's dtype; all but the matrices as `moe_mlp`.

    gate_up_EPHZ  of x's dtype, contiguous: of each expert `pack([2 I, H], gated=True)`
    down_EQIZ     of x's dtype, contiguous: of each expert `pack([H, I])`

    Products with gate and up are rounded once, after the activation. ValueError for shapes and
    dtypes that do not fit, and where a token has an expert twice.
    """
    _check(x_TH, gate_up_EPHZ, down_EQIZ, weights_TN, experts_TN, counts_E)
    num_experts, _, inner, _ = down_EQIZ.shape
    module = native() if usable(x_TH, gate_up_EPHZ, down_EQIZ) else None
    if module is None:
        return moe_mlp(
            x_TH, *_plain(x_TH, gate_up_EPHZ, down_EQIZ), weights_TN, experts_TN,
            first_expert=first_expert, activation=activation, counts_E=counts_E,
        )  # fmt: skip
    if counts_E is None:
        counts_E = torch.empty(num_experts, dtype=torch.int64)
    out_TH = torch.empty_like(x_TH, memory_format=torch.contiguous_format)
    module.moe_mlp(
        itemsize=x_TH.element_size(),
        gate_up=gate_up_EPHZ.data_ptr(),
        down=down_EQIZ.data_ptr(),
        num_experts=num_experts,
        first_expert=first_expert,
        hidden=x_TH.shape[1],
        inner=inner,
        gelu=activation == "gelu_pytorch_tanh",
        tokens=len(x_TH),
        top_k=experts_TN.shape[1],
        weights=weights_TN.data_ptr(),
        experts=experts_TN.data_ptr(),
        x=x_TH.data_ptr(),
        ld_x=x_TH.stride(0),
        out=out_TH.data_ptr(),
        loads=counts_E.data_ptr(),
    )
    return out_TH


def _check(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
    counts: torch.Tensor | None,
) -> None:
    if x.ndim != 2 or (x.shape[1] > 1 and x.stride(1) != 1):
        raise ValueError(f"x: expected [T, H] with contiguous rows, got shape {list(x.shape)}")
    hidden = x.shape[1]
    num_experts, inner = down.shape[0], down.shape[2]
    gate_up_panels = -(-inner // MLP_TILE)
    for name, tensor, dtype, shape in (
        ("gate_up", gate_up, x.dtype, [num_experts, gate_up_panels, hidden, PANEL]),
        ("down", down, x.dtype, [num_experts, -(-hidden // PANEL), inner, PANEL]),
        ("weights", weights, torch.float32, [len(x), experts.shape[1]]),
        ("experts", experts, torch.int32, [len(x), experts.shape[1]]),
    ):
        if list(tensor.shape) != shape or tensor.dtype != dtype or not tensor.is_contiguous():
            raise ValueError(
                f"{name}: expected contiguous {shape} of {dtype}, got {list(tensor.shape)} of "
                f"{tensor.dtype}"
            )
    if counts is not None and (
        counts.shape != (num_experts,) or counts.dtype != torch.int64 or not counts.is_contiguous()
    ):
        raise ValueError(
            f"counts: expected contiguous [{num_experts}] of torch.int64, got "
            f"{list(counts.shape)} of {counts.dtype}"
        )


def _plain(
    x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as `moe_mlp` takes them."""
    hidden, inner = x.shape[1], down.shape[2]
    return (
        torch.stack([unpack(panels, 2 * inner, gated=True) for panels in gate_up]),
        torch.stack([unpack(panels, hidden).T for panels in down]),
    )


def moe_mlp_panels_reference(
    x_TH: torch.Tensor,
    gate_up_EPHZ: torch.Tensor,
    down_EQIZ: torch.Tensor,
    weights_TN: torch.Tensor,
    experts_TN: torch.Tensor,
    *,
    first_expert: int = 0,
    activation: Activation = "silu",
    counts_E: torch.Tensor | None = None,
) -> torch.Tensor:
    gate_up_EJH, down_EIH = _plain(x_TH, gate_up_EPHZ, down_EQIZ)
    return moe_mlp_reference(
        x_TH, gate_up_EJH, down_EIH, weights_TN, experts_TN,
        first_expert=first_expert, activation=activation, counts_E=counts_E,
    )  # fmt: skip


def _make_inputs(generator: torch.Generator, case: Case, dtype: torch.dtype) -> dict[str, object]:
    inputs = PLAIN.make_inputs(generator, case, dtype)
    gate_up_EJH, down_EIH = inputs.pop("gate_up_EJH"), inputs.pop("down_EIH")
    return {
        "x_TH": inputs.pop("x_TH"),
        "gate_up_EPHZ": torch.stack([pack(weight_JH, gated=True) for weight_JH in gate_up_EJH]),
        "down_EQIZ": torch.stack([pack(weight_IH.T) for weight_IH in down_EIH]),
        **inputs,
    }


OP = Op(
    name="moe_mlp_panels",
    function=moe_mlp_panels,
    reference=moe_mlp_panels_reference,
    make_inputs=_make_inputs,
    # panels of 2-byte types hold pairs along each matrix's depth
    cases=tuple(case for case in PLAIN.cases if not (case["hidden"] % 2 or case["inner"] % 2)),
    tolerance=PLAIN.tolerance,
    cost=PLAIN.cost,
    # fewer experts than that model has, so that inputs are made in seconds
    bench={
        f"32 experts of Qwen3-30B-A3B, {tokens} tokens": Bench(
            case={
                **PLAIN.cases[0],
                "tokens": tokens,
                "experts": 32,
                "held": 32,
                "popular": 32,
                "top_k": 8,
                "hidden": 2048,
                "inner": 768,
            },
            cold=True,
            devices=("cpu",),
        )
        for tokens in (1, 16, 256)
    },
    mutates=PLAIN.mutates,
    door=Door(moe_mlp_panels, lambda x, *_, **__: torch.empty_like(x)),
)
