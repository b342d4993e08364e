"""Rows of a table that holds a part of the vocabulary (formula and bytes: ops/vocab_embed.py).

One program copies `BLOCK` columns of a token's row, or writes zeros.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from seesaw.kernels.checks import FLOATS, expect, expect_tensors
from seesaw.kernels.kernel import Build, Config, Kernel, Key, Target
from seesaw.kernels.tuning import config_for

# Shape letters: T tokens, V rows of the table, H hidden.

OP = "vocab_embed"


@triton.jit
def _vocab_embed_kernel(
    token_ids_ptr,
    weight_ptr,
    out_ptr,
    token_stride,
    row_stride,
    first_id,
    num_rows,
    size,
    scale,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(token_ids_ptr + token * token_stride) - first_id
    held = tl.where((row >= 0) & (row < num_rows), size, 0)
    x = tl.load(weight_ptr + row * row_stride + column, mask=column < held, other=0.0)
    out = (x.to(tl.float32) * scale).to(x.dtype)
    tl.store(out_ptr + token * size + column, out, mask=column < size)


def vocab_embed(
    token_ids_T: torch.Tensor, weight_VH: torch.Tensor, first_id: int = 0, scale: float = 1.0
) -> torch.Tensor:
    """As `ops.vocab_embed`. Raises UnsupportedError."""
    expect_tensors(OP, FLOATS, weight=weight_VH)
    expect_tensors(OP, (torch.int64,), token_ids=token_ids_T)
    expect(OP, "device of token_ids", token_ids_T.device, weight_VH.device,
           token_ids_T.device == weight_VH.device)  # fmt: skip
    expect(OP, "dims of weight and token_ids", (weight_VH.dim(), token_ids_T.dim()), (2, 1),
           weight_VH.dim() == 2 and token_ids_T.dim() == 1)  # fmt: skip
    num_rows, size = weight_VH.shape
    expect(OP, "distance of columns", weight_VH.stride(1), 1, weight_VH.stride(1) == 1 or size == 1)
    out_TH = weight_VH.new_empty(len(token_ids_T), size)
    if out_TH.numel():
        config = config_for(KERNEL, weight_VH.device, size=size)
        grid = (len(token_ids_T), triton.cdiv(size, config.blocks["BLOCK"]))
        _vocab_embed_kernel[grid](
            token_ids_T,
            weight_VH,
            out_TH,
            token_ids_T.stride(0),
            weight_VH.stride(0),
            first_id,
            num_rows,
            size,
            float(scale),
            **config.arguments(),
        )
    return out_TH


def _default(key: Key, target: Target) -> Config:
    block = min(1024, triton.next_power_of_2(int(key["size"])))
    return Config({"BLOCK": block}, num_warps=max(1, block // 256))


def _build(size: int, dtype: str) -> Build:
    return Build(
        key={"size": size},
        signature={
            "token_ids_ptr": "*i64", "weight_ptr": dtype, "out_ptr": dtype, "row_stride": "i32",
            "first_id": "i32", "num_rows": "i32", "size": "i32", "scale": "fp32",
        },
        constants={"token_stride": 1},
        aligned=("token_ids_ptr", "weight_ptr", "out_ptr", "row_stride", "size"),
    )  # fmt: skip


KERNEL = Kernel(
    name="vocab_embed",
    function=_vocab_embed_kernel,
    builds=(_build(576, "*bf16"), _build(4096, "*bf16"), _build(4096, "*fp16"),
            _build(4096, "*fp32")),
    default=_default,
)  # fmt: skip
KERNELS = (KERNEL,)
