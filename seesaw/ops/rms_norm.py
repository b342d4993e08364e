"""RMSNorm, with the residual add that comes before it.

    r = x + residual;  out = r / sqrt(mean(r^2) + eps) * w        (w + 1 with plus_one)

Statistics in float32. Bytes: x, residual, out and r once each (2 to 4 times N * H); about 4 N H
flops, so memory-bound everywhere.
"""

from __future__ import annotations

import torch

from seesaw.ops.registry import FLOAT_TOLERANCE, Case, Cost, Op

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

    Without `residual_NH` the second result is `x_NH` itself. Inputs are not changed. Rounding
    follows the checkpoints' authors: without `plus_one` the normalised value is rounded to x's
    dtype before the weight multiplies it (Llama), with it the product is made in float32 and
    rounded once (Gemma).
    """
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
        "eps": 1e-6,
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
)
