"""Linear layers over weights in panels (`panels.pack`), with what follows fused.

    out = x W^T + bias;  out += x W^T + bias;  out = act(gate) * up;  highest of x W^T + bias

Bytes: weights, x and out once (few rows are bound by the weights); flops: 2 M N K (many rows are
bound by these). Sums are float32 and rounded once.
"""

from __future__ import annotations

from types import ModuleType

import torch

from seesaw.layout.panels import PANEL
from seesaw.ops.gated_activation import Activation, gated_activation_reference
from seesaw.ops.linear_cases import (
    CASES,
    add_cost,
    add_inputs,
    gated_inputs,
    highest_cost,
    highest_inputs,
    linear_cost,
    linear_inputs,
)
from seesaw.ops.native import native, usable
from seesaw.ops.panels import unpack
from seesaw.ops.registry import EXACT, FLOAT_TOLERANCE, Bench, Door, Op
from seesaw.ops.shapes import LLAMA_1B, SMALL, SMOLLM2_135M

# Shape letters: M rows, K depth, N columns, I intermediate size, J = 2 I, P panels, Z = 32 columns
# of one.

_KINDS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


def linear(
    x_MK: torch.Tensor,
    panels_PKZ: torch.Tensor,
    num_columns: int,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """x W^T + bias, `[M, num_columns]` of x's dtype, or as float32 sums for `out_dtype` float32.

    x_MK       last dim contiguous, else any strides
    panels_PKZ of x's dtype, each panel contiguous, at any even distance from one another
    bias       `[32 P]` in the order of the panels, of x's dtype
    """
    dtype = out_dtype or x_MK.dtype
    _check(x_MK, panels_PKZ, num_columns, bias, dtype)
    module = _module(x_MK, panels_PKZ, bias)
    if module is None:
        sums_MN = _sums(x_MK, unpack(panels_PKZ, num_columns), _first(bias, num_columns))
        return sums_MN.to(dtype)
    out_MN = x_MK.new_empty((len(x_MK), num_columns), dtype=dtype)
    kind = "store" if dtype == x_MK.dtype else "f32"
    _run(module, kind, x_MK, panels_PKZ, num_columns, bias, out_MN)
    return out_MN


def linear_add(
    x_MK: torch.Tensor,
    panels_PKZ: torch.Tensor,
    out_MN: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> None:
    """out += x W^T + bias, in place; N of `out_MN` is the number of real columns. See `linear`."""
    num_columns = out_MN.shape[1]
    _check(x_MK, panels_PKZ, num_columns, bias, out_MN.dtype, out_MN)
    module = _module(x_MK, panels_PKZ, bias)
    if module is None:
        sums_MN = _sums(x_MK, unpack(panels_PKZ, num_columns), _first(bias, num_columns))
        out_MN.copy_(sums_MN.add_(out_MN))
    else:
        _run(module, "add", x_MK, panels_PKZ, num_columns, bias, out_MN)


def linear_gated(
    x_MK: torch.Tensor,
    panels_PKZ: torch.Tensor,
    intermediate: int,
    activation: Activation,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """act(gate) * up, `[M, intermediate]` of x's dtype, from `pack(weight, gated=True)`.

    The product is rounded once; `gated_activation` rounds the activation too. See `linear`.
    """
    num_columns = 2 * intermediate
    _check(x_MK, panels_PKZ, num_columns, bias, x_MK.dtype)
    module = _module(x_MK, panels_PKZ, bias)
    if module is None:
        plain_JK = unpack(panels_PKZ, num_columns, gated=True)
        sums_MJ = _sums(x_MK, plain_JK, _first(bias, num_columns, gated=True))
        return gated_activation_reference(sums_MJ, activation).to(x_MK.dtype)
    out_MI = x_MK.new_empty((len(x_MK), intermediate))
    _run(module, _KINDS[activation], x_MK, panels_PKZ, num_columns, bias, out_MI)
    return out_MI


def linear_highest(
    x_MK: torch.Tensor,
    panels_PKZ: torch.Tensor,
    num_columns: int,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(value `[M]` float32, column `[M]` int64) of the highest sum of each row, the lowest column
    of equals. NaN counts only where all is NaN: then NaN and column 0. See `linear`."""
    _check(x_MK, panels_PKZ, num_columns, bias, torch.float32)
    if num_columns < 1:
        raise ValueError("the highest of no columns: expected num_columns of 1 or more")
    module = _module(x_MK, panels_PKZ, bias)
    if module is None:
        sums_MN = _sums(x_MK, unpack(panels_PKZ, num_columns), _first(bias, num_columns))
        return _highest(sums_MN)
    value_M = x_MK.new_empty(len(x_MK), dtype=torch.float32)
    column_M = x_MK.new_empty(len(x_MK), dtype=torch.int64)
    module.linear_highest(
        **_weight(panels_PKZ, num_columns, bias),
        **_rows(x_MK),
        value=value_M.data_ptr(),
        column=column_M.data_ptr(),
    )
    return value_M, column_M


def _check(
    x: torch.Tensor,
    panels: torch.Tensor,
    num_columns: int,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
    out: torch.Tensor | None = None,
) -> None:
    if panels.ndim != 3 or panels.shape[2] != PANEL or not panels[:1].is_contiguous():
        raise ValueError(f"panels: expected [P, K, 32], each contiguous, got {_form(panels)}")
    if x.ndim != 2 or x.shape[1] != panels.shape[1] or not _rows_contiguous(x):
        raise ValueError(f"x: expected [M, {panels.shape[1]}] with contiguous rows, got {_form(x)}")
    columns = panels.shape[0] * PANEL
    if not columns - PANEL < num_columns <= columns:
        raise ValueError(
            f"num_columns: {panels.shape[0]} panels hold {columns} at most and fewer than 32 "
            f"less, got {num_columns}"
        )
    if bias is not None and (bias.shape != (columns,) or not bias.is_contiguous()):
        raise ValueError(f"bias: expected [{columns}], one per column, got {_form(bias)}")
    if panels.dtype != x.dtype or (bias is not None and bias.dtype != x.dtype):
        raise ValueError(f"panels and bias: expected {x.dtype} as x has, got {panels.dtype}")
    if out_dtype not in (x.dtype, torch.float32) or (out is not None and out.dtype != x.dtype):
        raise ValueError(f"out: expected {x.dtype} as x has, got {out_dtype}")
    if out is not None and (len(out) != len(x) or not _rows_contiguous(out)):
        raise ValueError(f"out: expected {len(x)} contiguous rows, got {_form(out)}")


def _rows_contiguous(x: torch.Tensor) -> bool:
    return x.stride(1) == 1 or x.shape[1] <= 1


def _form(x: torch.Tensor) -> str:
    return f"shape {list(x.shape)}, strides {list(x.stride())}"


def _module(x: torch.Tensor, panels: torch.Tensor, bias: torch.Tensor | None) -> ModuleType | None:
    tensors = (x, panels) if bias is None else (x, panels, bias)
    return native() if usable(*tensors) else None


def _weight(panels: torch.Tensor, num_columns: int, bias: torch.Tensor | None) -> dict[str, int]:
    return {
        "panels": panels.data_ptr(),
        "panel_stride_bytes": panels.stride(0) * panels.element_size(),
        "num_panels": panels.shape[0],
        "columns": num_columns,
        "depth": panels.shape[1],
        "itemsize": panels.element_size(),
        "bias": 0 if bias is None else bias.data_ptr(),
    }


def _rows(x: torch.Tensor) -> dict[str, int]:
    return {"x": x.data_ptr(), "ld_x": x.stride(0), "rows": x.shape[0]}


def _run(
    module: ModuleType,
    kind: str,
    x: torch.Tensor,
    panels: torch.Tensor,
    num_columns: int,
    bias: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    module.linear(
        kind=kind,
        **_weight(panels, num_columns, bias),
        **_rows(x),
        out=out.data_ptr(),
        ld_out=out.stride(0),
    )


def _first(bias: torch.Tensor | None, num_columns: int, gated: bool = False) -> torch.Tensor | None:
    """The real entries of a bias in the order of panels, in the order of plain columns."""
    if bias is None:
        return None
    panels_P1Z = bias.float().view(-1, 1, PANEL)
    return unpack(panels_P1Z, num_columns, gated)[:, 0]


def _sums(
    x: torch.Tensor,
    plain: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    sums = x.to(dtype) @ plain.to(dtype).T
    return sums if bias is None else sums + bias.to(dtype)


def _highest(sums_MN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    nan_MN = sums_MN.isnan()
    # NaN below -inf: the first of what is left that reaches the highest
    highest_M1 = sums_MN.masked_fill(nan_MN, float("-inf")).amax(-1, keepdim=True)
    column_M = ((sums_MN == highest_M1) & ~nan_MN).int().argmax(-1)
    return sums_MN.gather(1, column_M[:, None]).squeeze(1).float(), column_M


def linear_reference(
    x_MK: torch.Tensor,
    panels_PKZ: torch.Tensor,
    num_columns: int,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    plain, real = unpack(panels_PKZ, num_columns), _first(bias, num_columns)
    return _sums(x_MK, plain, real, torch.float64).to(out_dtype or x_MK.dtype)


def linear_add_reference(
    x_MK: torch.Tensor,
    panels_PKZ: torch.Tensor,
    out_MN: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> None:
    sums = linear_reference(x_MK, panels_PKZ, out_MN.shape[1], bias, torch.float64)
    out_MN.copy_(sums + out_MN)


def linear_gated_reference(
    x_MK: torch.Tensor,
    panels_PKZ: torch.Tensor,
    intermediate: int,
    activation: Activation,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    plain = unpack(panels_PKZ, 2 * intermediate, gated=True)
    sums = _sums(x_MK, plain, _first(bias, 2 * intermediate, gated=True), torch.float64)
    return gated_activation_reference(sums, activation).to(x_MK.dtype)


def linear_highest_reference(
    x_MK: torch.Tensor,
    panels_PKZ: torch.Tensor,
    num_columns: int,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return _highest(linear_reference(x_MK, panels_PKZ, num_columns, bias, torch.float64))


def _fake(
    x_MK: torch.Tensor,
    panels_PKZ: torch.Tensor,
    num_columns: int,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    return x_MK.new_empty(len(x_MK), num_columns, dtype=out_dtype or x_MK.dtype)


def _fake_highest(x_MK: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
    rows = len(x_MK)
    return x_MK.new_empty(rows, dtype=torch.float32), x_MK.new_empty(rows, dtype=torch.int64)


_ROWS = (1, 4, 8, 16, 32, 64, 256, 1024)


def _bench(
    rows: int, columns: int, depth: int, dtype: torch.dtype = torch.bfloat16, **more: object
) -> Bench:
    """Panels are for CPUs; weights come from memory."""
    sizes = {"rows": rows, "columns": columns, "depth": depth, "bias": False}
    return Bench(case={**sizes, **more}, dtype=dtype, cold=True, devices=("cpu",))


OPS = (
    Op(
        name="linear",
        function=linear,
        reference=linear_reference,
        make_inputs=linear_inputs,
        cases=CASES,
        tolerance=FLOAT_TOLERANCE,
        cost=linear_cost,
        bench={
            f"{SMOLLM2_135M.name}, qkv, {rows} rows": _bench(
                rows, SMOLLM2_135M.qkv, SMOLLM2_135M.hidden
            )
            for rows in _ROWS
        },
        door=Door(linear, _fake),
    ),
    Op(
        name="linear_add",
        function=linear_add,
        reference=linear_add_reference,
        make_inputs=add_inputs,
        cases=CASES,
        tolerance=FLOAT_TOLERANCE,
        cost=add_cost,
        bench={
            f"{model.name}, down, {rows} rows": _bench(rows, model.hidden, model.inner)
            for model in (SMOLLM2_135M, LLAMA_1B)
            for rows in _ROWS
        },
        mutates=("out_MN",),
        door=Door(linear_add, lambda *_, **__: None),
    ),
    Op(
        name="linear_gated",
        function=linear_gated,
        reference=linear_gated_reference,
        make_inputs=gated_inputs,
        cases=tuple(
            {**case, "activation": activation}
            for case in CASES
            for activation in ("silu", "gelu_pytorch_tanh")
        ),
        tolerance=FLOAT_TOLERANCE,
        cost=linear_cost,
        bench={
            f"{model.name}, {rows} rows{label}": _bench(
                rows, 2 * model.inner, model.hidden, dtype, activation=model.activation
            )
            for models, dtype, label in (
                (SMALL, torch.bfloat16, ""),
                ((SMOLLM2_135M,), torch.float32, ", float32"),
            )
            for model in models
            for rows in _ROWS
        },
        door=Door(linear_gated, lambda x, panels, size, *_, **__: x.new_empty(len(x), size)),
    ),
    Op(
        name="linear_highest",
        function=linear_highest,
        reference=linear_highest_reference,
        make_inputs=highest_inputs,
        cases=CASES,
        tolerance=dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), EXACT),
        cost=highest_cost,
        bench={
            f"{SMOLLM2_135M.name}, {rows} rows": _bench(
                rows, SMOLLM2_135M.vocab, SMOLLM2_135M.hidden
            )
            for rows in (1, 16, 64)
        },
        door=Door(linear_highest, _fake_highest),
    ),
)
