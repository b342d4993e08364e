"""Puts the results of splits of a row together by their log-sum-exp: the second half of
`kernels/paged_decode.py`.

    lse = log(sum of exp(lse_n));  out = sum of exp(lse_n - lse) * out_n
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from seesaw.kernels.kernel import Build, Config, Kernel, Key, Target
from seesaw.kernels.tuning import config_for

# Shape letters: R rows, T tokens of all rows, H query heads, D head_dim, N splits.

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["num_splits"])
def _merge_kernel(
    part_ptr,
    part_lse_ptr,
    cu_seqlens_q_ptr,
    out_ptr,
    lse_ptr,
    out_token_stride,
    out_head_stride,
    num_splits,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    row, head, num_heads = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    token = row.to(tl.int64)
    if cu_seqlens_q_ptr is not None:
        begin = tl.load(cu_seqlens_q_ptr + row)
        if tl.load(cu_seqlens_q_ptr + row + 1) - begin != 1:
            return
        token = begin.to(tl.int64)
    at = (row.to(tl.int64) * num_heads + head) * num_splits
    dim = tl.arange(0, PADDED_DIM)
    whole_max = -float("inf")
    whole_sum = 0.0
    acc = tl.zeros([PADDED_DIM], tl.float32)
    for start in range(0, num_splits, BLOCK_S):
        split = start + tl.arange(0, BLOCK_S)
        lse = tl.load(part_lse_ptr + at + split, mask=split < num_splits, other=-float("inf"))
        used = lse != -float("inf")  # an unused split has written nothing else
        new_max = tl.maximum(whole_max, tl.max(lse, 0))
        base = tl.where(new_max == -float("inf"), 0.0, new_max)
        weights = tl.exp2((lse - base) * LOG2E)
        shrink = tl.exp2((whole_max - base) * LOG2E)
        part = tl.load(
            part_ptr + (at + split)[:, None] * HEAD_DIM + dim[None, :],
            mask=used[:, None] & (dim < HEAD_DIM)[None, :],
            other=0.0,
        )
        acc = acc * shrink + tl.sum(part * weights[:, None], 0)
        whole_sum = whole_sum * shrink + tl.sum(weights, 0)
        whole_max = new_max
    whole_sum = tl.where(whole_sum == 0.0, 1.0, whole_sum)  # a row without keys: out 0, lse -inf
    acc /= whole_sum
    out_at = token * out_token_stride + head.to(tl.int64) * out_head_stride
    tl.store(out_ptr + out_at + dim, acc.to(out_ptr.dtype.element_ty), mask=dim < HEAD_DIM)
    if lse_ptr is not None:
        tl.store(lse_ptr + token * num_heads + head, whole_max + tl.log2(whole_sum) * LN2)


def merge_splits(
    part_RHND: torch.Tensor,
    part_lse_RHN: torch.Tensor,
    out_THD: torch.Tensor,
    lse_TH: torch.Tensor | None,
    cu_seqlens_q: torch.Tensor | None,
) -> None:
    """Writes row r of `part_RHND` to token `cu_seqlens_q[r]` if the row has exactly one (token r
    where there are no `cu_seqlens_q`). A split whose lse is -inf counts nothing, whatever it holds.

    All but `out_THD` are contiguous; parts and lse are float32.
    """
    rows, heads, splits, size = part_RHND.shape
    config = config_for(MERGE, part_RHND.device, head_dim=size)
    _merge_kernel[(rows, heads)](
        part_RHND, part_lse_RHN, cu_seqlens_q, out_THD, lse_TH, *out_THD.stride()[:2], splits,
        HEAD_DIM=size,
        PADDED_DIM=triton.next_power_of_2(size),
        **config.arguments(),
    )  # fmt: skip


def _default(key: Key, target: Target) -> Config:
    return Config({"BLOCK_S": 16}, num_warps=4, num_stages=1)


def _candidates(key: Key, target: Target) -> tuple[Config, ...]:
    return tuple(
        Config({"BLOCK_S": splits}, num_warps, num_stages=1)
        for splits in (4, 8, 16, 32, 64)
        for num_warps in (1, 2, 4, 8)
    )


def _build(size: int, dtype: str, *, ragged: bool = False, lse: bool = False) -> Build:
    signature = {
        "part_ptr": "*fp32",
        "part_lse_ptr": "*fp32",
        "out_ptr": dtype,
        "out_token_stride": "i32",
        "out_head_stride": "i32",
        "num_splits": "i32",
    }
    aligned = ["part_ptr", "part_lse_ptr", "out_ptr", "out_token_stride", "out_head_stride"]
    constants: dict[str, object] = {
        "HEAD_DIM": size, "PADDED_DIM": triton.next_power_of_2(size),
        "cu_seqlens_q_ptr": None, "lse_ptr": None,
    }  # fmt: skip
    for wanted, name, word in ((ragged, "cu_seqlens_q_ptr", "*i32"), (lse, "lse_ptr", "*fp32")):
        if wanted:
            del constants[name]
            signature[name] = word
            aligned.append(name)
    return Build(
        key={"head_dim": size}, signature=signature, constants=constants, aligned=tuple(aligned)
    )


MERGE = Kernel(
    name="paged_decode.merge",
    function=_merge_kernel,
    builds=(
        _build(64, "*fp16"),
        _build(80, "*bf16", ragged=True),
        _build(128, "*bf16", ragged=True, lse=True),
        _build(256, "*fp32"),
    ),
    default=_default,
    candidates=_candidates,
)
