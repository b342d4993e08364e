"""RMSNorm, with the residual add that comes before it.

    r = x + residual;  out = r / sqrt(mean(r^2) + eps) * w        (w + 1 with plus_one)

Statistics in float32. Bytes: x, residual, out and r once each (2 to 4 times N * H); about 4 N H
flops, so memory-bound everywhere.
"""

from __future__ import annotations

from types import ModuleType

import torch

from seesaw.ops.native import native, usable
from seesaw.ops.registry import FLOAT_TOLERANCE, Bench, Case, Cost, Door, Op
from seesaw.ops.shapes import LLAMA_8B, SMALL
from seesaw.ops.triton_backend import on_triton

# Shape letters: N rows (any leading dims), H the normalised size.


def rms_norm(
    x_NH: torch.Tensor,
    weight_H: torch.Tensor,
    eps: float,
    *,
    residual_NH: torch.Tensor | None = None,
    plus_one: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalise the last dim of `x_NH + residual_NH`; returns (normed, x + residual), both of x's
    dtype.

    Without `residual_NH` the second result is `x_NH` itself. Inputs are not changed. Kernels round
    each result once. Plain torch follows the checkpoints' authors: without `plus_one` the
    normalised value is rounded to x's dtype before the weight multiplies it (Llama), with it the
    product is made in float32 and rounded once (Gemma).
    """
    if on_triton(x_NH):
        from seesaw.kernels.rms_norm import rms_norm as launch

        return launch(x_NH, weight_H, eps, residual_NH=residual_NH, plus_one=plus_one)
    added = () if residual_NH is None else (residual_NH,)
    cpu = native()
    if cpu is not None and usable(x_NH, weight_H, *added):
        return _rms_norm_cpu(cpu, x_NH, weight_H, eps, residual_NH, plus_one)
    added_NH = x_NH if residual_NH is None else x_NH + residual_NH
    wide_NH = added_NH.float()
    size = x_NH.shape[-1]
    # vector_norm reads once, where pow().mean() would write the squares out
    mean_N1 = torch.linalg.vector_norm(wide_NH, dim=-1, keepdim=True).square_().div_(size)
    scale_N1 = mean_N1.add_(eps).rsqrt_()
    if plus_one:
        normed_NH = (wide_NH * scale_N1).mul_(weight_H.float() + 1.0).to(x_NH.dtype)
    else:
        normed_NH = (wide_NH * scale_N1).to(x_NH.dtype).mul_(weight_H)
    return normed_NH, added_NH


def _rms_norm_cpu(
    cpu: ModuleType,
    x_NH: torch.Tensor,
    weight_H: torch.Tensor,
    eps: float,
    residual_NH: torch.Tensor | None,
    plus_one: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    if weight_H.shape != x_NH.shape[-1:]:
        raise ValueError(f"weight: got {list(weight_H.shape)} for x {list(x_NH.shape)}")
    if residual_NH is not None and residual_NH.shape != x_NH.shape:
        raise ValueError(f"residual: got {list(residual_NH.shape)} for x {list(x_NH.shape)}")
    weight_H = weight_H.contiguous()
    x_MH = _rows(x_NH)
    add_MH = None if residual_NH is None else _rows(residual_NH)
    normed_NH = torch.empty(x_NH.shape, dtype=x_NH.dtype)
    added_NH = x_NH if add_MH is None else torch.empty_like(normed_NH)
    cpu.rms_norm(
        itemsize=x_NH.itemsize,
        rows=x_MH.shape[0],
        size=x_MH.shape[1],
        x=x_MH.data_ptr(),
        ld_x=x_MH.stride(0),
        add=0 if add_MH is None else add_MH.data_ptr(),
        ld_add=0 if add_MH is None else add_MH.stride(0),
        sum=0 if add_MH is None else added_NH.data_ptr(),
        weight=weight_H.data_ptr(),
        eps=eps,
        plus_one=plus_one,
        out=normed_NH.data_ptr(),
    )
    return normed_NH, added_NH


def _rows(x_NH: torch.Tensor) -> torch.Tensor:
    """All rows in one dim; a copy only where their distances are uneven."""
    rows = x_NH.flatten(0, -2) if x_NH.dim() > 1 else x_NH[None]
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _door(
    x_NH: torch.Tensor,
    weight_H: torch.Tensor,
    eps: float,
    *,
    residual_NH: torch.Tensor | None = None,
    plus_one: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    normed, added = rms_norm(x_NH, weight_H, eps, residual_NH=residual_NH, plus_one=plus_one)
    return normed, x_NH.clone() if added is x_NH else added


def _fake(x_NH: torch.Tensor, *_: object, **__: object) -> tuple[torch.Tensor, torch.Tensor]:
    return x_NH.new_empty(x_NH.shape), x_NH.new_empty(x_NH.shape)


def rms_norm_reference(
    x_NH: torch.Tensor,
    weight_H: torch.Tensor,
    eps: float,
    *,
    residual_NH: torch.Tensor | None = None,
    plus_one: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    added_NH = x_NH if residual_NH is None else x_NH + residual_NH
    r = added_NH.double()
    weight = weight_H.double() + (1.0 if plus_one else 0.0)
    normed = r / (r.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight
    return normed.to(x_NH.dtype), added_NH


def _make_inputs(generator: torch.Generator, case: Case, dtype: torch.dtype) -> dict[str, object]:
    shape = (*case["rows"], case["size"])
    x = torch.randn(shape, generator=generator).to(dtype)
    return {
        "x_NH": x,
        "weight_H": torch.randn(case["size"], generator=generator).to(dtype),
        "eps": 1e-2,  # large enough to matter
        "residual_NH": torch.randn(shape, generator=generator).to(dtype)
        if case["residual"]
        else None,
        "plus_one": case["plus_one"],
    }


def _cost(case: Case, dtype: torch.dtype) -> Cost:
    elements = case["size"]
    for extent in case["rows"]:
        elements *= extent
    tensors = 4 if case["residual"] else 2
    return Cost((tensors * elements + case["size"]) * dtype.itemsize, 4 * elements)


OP = Op(
    name="rms_norm",
    function=rms_norm,
    reference=rms_norm_reference,
    make_inputs=_make_inputs,
    cases=tuple(
        {"rows": rows, "size": size, "residual": residual, "plus_one": plus_one}
        for rows, size in (((0,), 64), ((1,), 576), ((7,), 80), ((33,), 2048), ((5, 3), 96))
        for residual in (False, True)
        for plus_one in (False, True)
    ),
    tolerance=FLOAT_TOLERANCE,
    cost=_cost,
    bench={
        f"{model.name}, {rows} rows": Bench(
            case={"rows": (rows,), "size": model.hidden, "residual": True, "plus_one": False}
        )
        for model in (*SMALL, LLAMA_8B)
        for rows in (1, 64, 2048)
    },
    door=Door(_door, _fake),
)
