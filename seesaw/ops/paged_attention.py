"""Causal attention of a step's tokens over the paged KV pool: decode rows and prompt chunks alike.

    out[i] = softmax(sm_scale * q[i] K^T, keys up to i, within the window) V   per query head

Bytes: K and V of every row once (decode is bound by these), q and out; flops: 4 * D per (query,
visible key, query head) (prefill is bound by these). On the CPU the C++ kernel computes it
(csrc/cpu/attention.h), on a GPU the Triton kernels of `paged_decode` and `paged_prefill`; elsewhere
keys are gathered from their blocks and go through torch's fused attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch

from seesaw.ops.attention_cases import (
    door_inputs,
    fake_attention,
    paged_case,
    paged_cost,
    paged_inputs,
)
from seesaw.ops.attention_cpu import attend_with_cpp, fits
from seesaw.ops.attention_plan import AttentionPlan, plan_attention
from seesaw.ops.attention_torch import attend_with_torch
from seesaw.ops.device_rows import DeviceRows
from seesaw.ops.native import native
from seesaw.ops.registry import FLOAT_TOLERANCE, Bench, Door, Op
from seesaw.ops.shapes import SMALL
from seesaw.ops.triton_backend import on_triton
from seesaw.plan.attention_workspace import AttentionShape

# Shape letters: T tokens, H query heads, K KV heads (of a pass), G = H / K, D head_dim, R rows, P
# blocks per row, B rows of a group, Q queries and C keys per row of it.


@overload
def paged_attention(
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlens_q: Sequence[int],
    seq_lens: Sequence[int],
    *,
    sm_scale: float,
    sliding_window: int | None = ...,
    soft_cap: float | None = ...,
    panels: bool = ...,
    plan: AttentionPlan | None = ...,
    device_rows: DeviceRows | None = ...,
    return_lse: Literal[False] = ...,
) -> torch.Tensor: ...
@overload
def paged_attention(
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlens_q: Sequence[int],
    seq_lens: Sequence[int],
    *,
    sm_scale: float,
    sliding_window: int | None = ...,
    soft_cap: float | None = ...,
    panels: bool = ...,
    plan: AttentionPlan | None = ...,
    device_rows: DeviceRows | None = ...,
    return_lse: Literal[True],
) -> tuple[torch.Tensor, torch.Tensor]: ...
def paged_attention(
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlens_q: Sequence[int],
    seq_lens: Sequence[int],
    *,
    sm_scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    panels: bool = False,
    plan: AttentionPlan | None = None,
    device_rows: DeviceRows | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention of ragged rows; returns `[T, H, D]` of q's dtype, contiguous.

    q_THD            queries of all rows, one row after another, any strides
    k_cache, v_cache [num_blocks, block_size, K, D], any strides with the last dim contiguous; they
                     hold this step's tokens already; query head h reads KV head h // G
    block_table      [R, P] int32 or int64; entries past a row's last block are not used
    cu_seqlens_q     R + 1 offsets into T, on the host; row r has the LAST tokens of its sequence
    seq_lens         tokens of each row whose KV counts, this step's included, on the host
    sliding_window   a query sees this many keys, itself included; None = all before it
    soft_cap         scores become soft_cap * tanh(score / soft_cap)
    panels           the block_size * D elements of a tile stand in the order of `kv_panels`
    plan             of `plan_attention` for the same rows and window; one serves all layers. Only
                     plain torch needs one
    device_rows      the same rows on the device; one serves all layers. Only Triton's kernels need
                     them, and then read nothing of `cu_seqlens_q` and `seq_lens`
    return_lse       also the natural log of the sum of exp of each query head's scores `[T, H]`,
                     float32; a `plan` is then one of an `unfused` shape

    What the pool holds beyond `seq_lens` has no influence, be it NaN. Beside its output the call
    allocates at most `scratch_bytes` (the plan's) + `workspace_bytes` of `attention_workspace`.
    Raises ValueError for sizes that do not fit, and for `panels` where the C++ kernel cannot run.
    """
    if on_triton(q_THD):
        if panels:
            raise ValueError(f"KV tiles in panels are not read by kernels on {q_THD.device}")
        if device_rows is None:
            device_rows = DeviceRows.of(cu_seqlens_q, seq_lens, q_THD.device)
        out_THD, lse_TH = _attend_triton(
            q_THD, k_cache, v_cache, block_table.to(torch.int32), device_rows, sm_scale,
            sliding_window, soft_cap, return_lse,
        )  # fmt: skip
    elif (cpu := native()) is not None and fits(q_THD, k_cache, v_cache, sm_scale):
        out_THD, lse_TH = attend_with_cpp(
            cpu, q_THD, k_cache, v_cache, block_table, list(cu_seqlens_q), list(seq_lens), sm_scale,
            sliding_window, soft_cap, panels, return_lse,
        )  # fmt: skip
    else:
        if panels:
            raise ValueError(_why_no_panels(q_THD, k_cache, v_cache, sm_scale))
        if plan is None:
            unfused = soft_cap is not None or q_THD.is_cuda or return_lse
            shape = _shape_of(q_THD, k_cache, sliding_window, unfused)
            plan = plan_attention(block_table, cu_seqlens_q, seq_lens, shape, q_THD.dtype)
        assert plan.shape.sliding_window == sliding_window, "the plan is for another window"
        assert plan.shape.unfused or not return_lse, "the plan is for results without lse"
        out_THD, lse_TH = _empty_results(q_THD, return_lse)
        attend_with_torch(plan, q_THD, k_cache, v_cache, out_THD, lse_TH, sm_scale, soft_cap)
    return out_THD if lse_TH is None else (out_THD, lse_TH)


def _empty_results(
    q_THD: torch.Tensor, return_lse: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    return out_THD, q_THD.new_empty(q_THD.shape[:2], dtype=torch.float32) if return_lse else None


def _shape_of(
    q_THD: torch.Tensor, k_cache: torch.Tensor, sliding_window: int | None, unfused: bool
) -> AttentionShape:
    return AttentionShape(
        num_heads=q_THD.shape[1],
        num_kv_heads=k_cache.shape[2],
        head_dim=q_THD.shape[2],
        block_size=k_cache.shape[1],
        element_bytes=q_THD.element_size(),
        sliding_window=sliding_window,
        unfused=unfused,
    )


def _why_no_panels(
    q_THD: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, sm_scale: float
) -> str:
    return (
        "KV tiles in panels are read by the C++ kernel alone, which takes bfloat16 or float32 on "
        "the CPU, a head_dim of 16, 32 .. 256, K and V of the same strides and a scale above 0; "
        f"got {q_THD.dtype} on {q_THD.device}, head_dim {q_THD.shape[-1]}, strides "
        f"{k_cache.stride()} and {v_cache.stride()}, scale {sm_scale}; seesaw._cpu is "
        f"{'not ' if native() is None else ''}in use"
    )


def _attend_triton(
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table_RP: torch.Tensor,
    rows: DeviceRows,
    sm_scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
    return_lse: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rows of one query by one kernel, longer ones by another, each leaving the rest of the result
    alone."""
    from seesaw.kernels.paged_decode import paged_decode
    from seesaw.kernels.paged_prefill import paged_prefill

    out_THD, lse_TH = _empty_results(q_THD, return_lse)
    if rows.num_single:
        all_single = rows.num_single == len(rows.seq_lens)
        paged_decode(
            q_THD, k_cache, v_cache, block_table_RP, rows.seq_lens, sm_scale=sm_scale,
            sliding_window=sliding_window, soft_cap=soft_cap,
            cu_seqlens_q=None if all_single else rows.cu_seqlens_q, max_seq_len=rows.max_seq_len,
            out_RHD=out_THD, lse_RH=lse_TH,
        )  # fmt: skip
    if rows.max_seqlen_q > 1:
        paged_prefill(
            q_THD, k_cache, v_cache, block_table_RP, rows.cu_seqlens_q, rows.seq_lens,
            max_seqlen_q=rows.max_seqlen_q, sm_scale=sm_scale, sliding_window=sliding_window,
            soft_cap=soft_cap, skip_single=rows.num_single > 0, out_THD=out_THD, lse_TH=lse_TH,
        )  # fmt: skip
    return out_THD, lse_TH


def _door(
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlens_q: Sequence[int],
    seq_lens: Sequence[int],
    *,
    sm_scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return paged_attention(
        q_THD, k_cache, v_cache, block_table, cu_seqlens_q, seq_lens, sm_scale=sm_scale,
        sliding_window=sliding_window, soft_cap=soft_cap, return_lse=True,
    )  # fmt: skip


def paged_attention_reference(
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlens_q: Sequence[int],
    seq_lens: Sequence[int],
    *,
    sm_scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    out = torch.empty_like(q_THD)
    lse = q_THD.new_empty(q_THD.shape[:2], dtype=torch.float32)
    group = q_THD.shape[1] // k_cache.shape[2]
    for row, seq_len in enumerate(seq_lens):
        start, stop = cu_seqlens_q[row], cu_seqlens_q[row + 1]
        slots = torch.arange(seq_len, device=q_THD.device)
        blocks = block_table[row].long()[slots // k_cache.shape[1]]
        k = k_cache[blocks, slots % k_cache.shape[1]].double().repeat_interleave(group, 1)
        v = v_cache[blocks, slots % k_cache.shape[1]].double().repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", q_THD[start:stop].double(), k) * sm_scale
        if soft_cap is not None:
            scores = soft_cap * (scores / soft_cap).tanh()
        position = torch.arange(seq_len - (stop - start), seq_len, device=q_THD.device)[:, None]
        visible = slots <= position
        if sliding_window is not None:
            visible &= slots > position - sliding_window
        scores.masked_fill_(~visible, float("-inf"))
        lse[start:stop] = scores.logsumexp(-1).T
        out[start:stop] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).to(out.dtype)
    return (out, lse) if return_lse else out


_MIXED = ((1, 1), (1, 17), (40, 40), (1, 300), (5, 77), (0, 9), (64, 200), (33, 33), (1, 16))
OP = Op(
    name="paged_attention",
    function=paged_attention,
    reference=paged_attention_reference,
    make_inputs=paged_inputs,
    cases=(
        paged_case((), 1, 1, 64, 16),
        paged_case([(1, 1)], 3, 3, 64, 32),
        paged_case([(2, 2)], 1, 8, 80, 16),
        paged_case(_MIXED, 3, 3, 64, 32),
        paged_case(_MIXED, 2, 1, 80, 16),
        paged_case(_MIXED, 1, 7, 96, 64),
        paged_case(_MIXED, 2, 2, 128, 128),
        paged_case(_MIXED, 1, 4, 256, 256),
        paged_case(_MIXED, 2, 2, 64, 16, sliding_window=1),
        paged_case(_MIXED, 2, 3, 64, 16, sliding_window=24),
        paged_case(_MIXED, 1, 5, 64, 32, sliding_window=64),
        paged_case(_MIXED, 2, 2, 64, 16, soft_cap=2.0),
        paged_case(_MIXED, 2, 3, 16, 5, lse=True),
        paged_case(_MIXED, 1, 3, 48, 32, lse=True, soft_cap=3.0, sliding_window=40),
        paged_case(_MIXED, 1, 6, 64, 32, soft_cap=5.0, sliding_window=33),
    ),
    tolerance=FLOAT_TOLERANCE,
    cost=paged_cost,
    door=Door(_door, fake_attention, door_inputs),
    bench={
        f"{model.name}, {name}": Bench(
            case=paged_case(rows, model.kv_heads, model.group, model.head_dim, 32),
            cold=True,
            devices=("cpu",),
        )
        for model in SMALL
        for name, rows in (
            ("1 at 1024", ((1, 1024),)),
            ("16 at 1032", ((1, 1032),) * 16),
            ("64 at 288", ((1, 288),) * 64),
            ("prompts of 256", ((256, 256),) * 8),
            ("prompt of 2048", ((2048, 2048),)),
            ("chunk beside decode", ((448, 1472), *((1, 288),) * 63)),
        )
    },
)
