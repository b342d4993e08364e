"""RMSNorm with the residual add before it (formula and bytes: ops/rms_norm.py).

One program holds a whole row in registers: everything is read once and written once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from seesaw.kernels.checks import FLOATS, expect, expect_tensors
from seesaw.kernels.kernel import Build, Config, Kernel, Key, Target
from seesaw.kernels.tuning import config_for

# Shape letters: N rows (any leading dims), M the same in one dim, H the normalised size.

MAX_SIZE = 65536
OP = "rms_norm"


@triton.jit
def _rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    added_ptr,
    x_row_stride,
    residual_row_stride,
    size,
    eps,
    PLUS_ONE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < size
    x = tl.load(x_ptr + row * x_row_stride + column, mask=inside, other=0.0)
    if residual_ptr is not None:
        residual = tl.load(
            residual_ptr + row * residual_row_stride + column, mask=inside, other=0.0
        )
        # rounded to the dtype, as what the next layer adds to is
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(x.dtype)
        tl.store(added_ptr + row * size + column, x, mask=inside)
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / size + eps)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    if PLUS_ONE:
        weight += 1.0
    tl.store(out_ptr + row * size + column, (wide * scale * weight).to(x.dtype), mask=inside)


def rms_norm(
    x_NH: torch.Tensor,
    weight_H: torch.Tensor,
    eps: float,
    *,
    residual_NH: torch.Tensor | None = None,
    plus_one: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `ops.rms_norm`; each result is rounded once. Raises UnsupportedError."""
    size = x_NH.shape[-1]
    given = {"x": x_NH, "weight": weight_H}
    if residual_NH is not None:
        given["residual"] = residual_NH
        expect(OP, "shape of residual", list(residual_NH.shape), f"that of x, {list(x_NH.shape)}",
               residual_NH.shape == x_NH.shape)  # fmt: skip
    expect_tensors(OP, FLOATS, **given)
    expect(OP, "shape of weight", list(weight_H.shape), [size], weight_H.shape == (size,))
    expect(OP, "size of a row", size, f"1 to {MAX_SIZE}", 1 <= size <= MAX_SIZE)
    x_MH = _rows(x_NH)
    residual_MH = None if residual_NH is None else _rows(residual_NH)
    normed_NH = torch.empty(x_NH.shape, dtype=x_NH.dtype, device=x_NH.device)
    added_NH = x_NH if residual_MH is None else torch.empty_like(normed_NH)
    if len(x_MH):
        config = config_for(KERNEL, x_NH.device, size=size)
        _rms_norm_kernel[(len(x_MH),)](
            x_MH,
            residual_MH,
            weight_H.contiguous(),
            normed_NH,
            None if residual_MH is None else added_NH,
            x_MH.stride(0),
            0 if residual_MH is None else residual_MH.stride(0),
            size,
            eps,
            PLUS_ONE=plus_one,
            **config.arguments(),
        )
    return normed_NH, added_NH


def _rows(x_NH: torch.Tensor) -> torch.Tensor:
    """All rows in one dim; a copy only where their distances are uneven."""
    rows = x_NH.flatten(0, -2) if x_NH.dim() > 1 else x_NH[None]
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _default(key: Key, target: Target) -> Config:
    block = triton.next_power_of_2(int(key["size"]))
    return Config({"BLOCK": block}, num_warps=min(16, max(1, block // 512)))


def _candidates(key: Key, target: Target) -> tuple[Config, ...]:
    blocks = _default(key, target).blocks
    return tuple(Config(blocks, num_warps=num_warps) for num_warps in (1, 2, 4, 8, 16, 32))


def _build(size: int, dtype: str, residual: bool, plus_one: bool = False) -> Build:
    signature = {"x_ptr": dtype, "weight_ptr": dtype, "out_ptr": dtype, "x_row_stride": "i32",
                 "residual_row_stride": "i32", "size": "i32", "eps": "fp32"}  # fmt: skip
    aligned = ["x_ptr", "weight_ptr", "out_ptr", "x_row_stride", "size"]
    constants: dict[str, object] = {"PLUS_ONE": plus_one}
    if residual:
        signature |= {"residual_ptr": dtype, "added_ptr": dtype}
        aligned += ["residual_ptr", "added_ptr", "residual_row_stride"]
    else:
        constants |= {"residual_ptr": None, "added_ptr": None}
    return Build(
        key={"size": size}, signature=signature, constants=constants, aligned=tuple(aligned)
    )


KERNEL = Kernel(
    name="rms_norm",
    function=_rms_norm_kernel,
    builds=(
        _build(576, "*bf16", True),
        _build(4096, "*bf16", True),
        _build(4096, "*fp16", False),
        _build(8192, "*bf16", False),
        _build(640, "*bf16", True, plus_one=True),
        _build(4096, "*fp32", True),
    ),
    default=_default,
    candidates=_candidates,
)
KERNELS = (KERNEL,)
