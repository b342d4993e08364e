"""Causal attention of a step's tokens over the paged KV pool: decode rows and prompt chunks alike.

    out[i] = softmax(sm_scale * q[i] K^T, keys up to i, within the window) V   per query head

Bytes: K and V of every row once (decode is bound by these), q and out; flops: 4 * D per (query,
visible key, query head) (prefill is bound by these). On the CPU the C++ kernel computes it
(csrc/cpu/attention.h), on a GPU the Triton kernels of `paged_decode` and `paged_prefill`; elsewhere
keys are gathered from their blocks and go through torch's fused attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import torch

from seesaw.ops.attention_cpu import attend_with_cpp, fits
from seesaw.ops.attention_plan import AttentionPlan, plan_attention
from seesaw.ops.attention_torch import attend_with_torch
from seesaw.ops.device_rows import DeviceRows
from seesaw.ops.native import native
from seesaw.ops.registry import FLOAT_TOLERANCE, Bench, Case, Cost, Door, Op
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
        return out_THD if lse_TH is None else (out_THD, lse_TH)
    cpu = native()
    if cpu is not None and fits(q_THD, k_cache, v_cache, sm_scale):
        out_THD, lse_TH = attend_with_cpp(
            cpu, q_THD, k_cache, v_cache, block_table, list(cu_seqlens_q), list(seq_lens), sm_scale,
            sliding_window, soft_cap, panels, return_lse,
        )  # fmt: skip
        return out_THD if lse_TH is None else (out_THD, lse_TH)
    if panels:
        raise ValueError(
            "KV tiles in panels are read by the C++ kernel alone, which takes bfloat16 or float32 "
            "on the CPU, a head_dim of 16, 32 .. 256, K and V of the same strides and a scale "
            f"above 0; got {q_THD.dtype} on {q_THD.device}, head_dim {q_THD.shape[-1]}, strides "
            f"{k_cache.stride()} and {v_cache.stride()}, scale {sm_scale}; seesaw._cpu is "
            f"{'not ' if cpu is None else ''}in use"
        )
    if plan is None:
        shape = AttentionShape(
            num_heads=q_THD.shape[1],
            num_kv_heads=k_cache.shape[2],
            head_dim=q_THD.shape[2],
            block_size=k_cache.shape[1],
            element_bytes=q_THD.element_size(),
            sliding_window=sliding_window,
            unfused=soft_cap is not None or q_THD.is_cuda or return_lse,
        )
        plan = plan_attention(block_table, cu_seqlens_q, seq_lens, shape, q_THD.dtype)
    assert plan.shape.sliding_window == sliding_window, "the plan is for another window"
    assert plan.shape.unfused or not return_lse, "the plan is for results without lse"
    out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    lse_TH = q_THD.new_empty(q_THD.shape[:2], dtype=torch.float32) if return_lse else None
    attend_with_torch(plan, q_THD, k_cache, v_cache, out_THD, lse_TH, sm_scale, soft_cap)
    return out_THD if lse_TH is None else (out_THD, lse_TH)


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

    out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    lse_TH = q_THD.new_empty(q_THD.shape[:2], dtype=torch.float32) if return_lse else None
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


def _fake(q_THD: torch.Tensor, *_: object, **__: object) -> tuple[torch.Tensor, torch.Tensor]:
    return q_THD.new_empty(q_THD.shape), q_THD.new_empty(q_THD.shape[:2], dtype=torch.float32)


def _door_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name != "return_lse"}


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


def _make_inputs(generator: torch.Generator, case: Case, dtype: torch.dtype) -> dict[str, object]:
    rows, block_size, size = case["rows"], case["block_size"], case["head_dim"]
    kv_heads, heads = case["kv_heads"], case["kv_heads"] * case["group"]
    counts = [-(-seq_len // block_size) for _, seq_len in rows]
    pool_shape = (sum(counts) + 1, kv_heads, 2, block_size, size)
    pool = torch.randn(pool_shape, generator=generator).to(dtype)
    order = (torch.randperm(sum(counts), generator=generator) + 1).to(torch.int32)
    table = torch.zeros(len(rows), max(counts, default=0), dtype=torch.int32)
    cu_seqlens, used = [0], 0
    for row, (queries, _) in enumerate(rows):
        table[row, : counts[row]] = order[used : used + counts[row]]
        used += counts[row]
        cu_seqlens.append(cu_seqlens[-1] + queries)
    return {
        "q_THD": torch.randn(cu_seqlens[-1], heads, size, generator=generator).to(dtype),
        "k_cache": pool[:, :, 0].transpose(1, 2),
        "v_cache": pool[:, :, 1].transpose(1, 2),
        "block_table": table,
        "cu_seqlens_q": cu_seqlens,
        "seq_lens": [seq_len for _, seq_len in rows],
        "sm_scale": size**-0.5,
        "sliding_window": case.get("sliding_window"),
        "soft_cap": case.get("soft_cap"),
        "return_lse": case.get("lse", False),
    }


def _cost(case: Case, dtype: torch.dtype) -> Cost:
    size, kv_heads, window = case["head_dim"], case["kv_heads"], case.get("sliding_window")
    heads = kv_heads * case["group"]
    queries = keys = pairs = 0
    for count, seq_len in case["rows"]:
        queries += count
        seen = [min(p + 1, window or p + 1) for p in range(seq_len - count, seq_len)]
        pairs += sum(seen)
        keys += min(seq_len, count - 1 + window) if window and count else seq_len
    elements = 2 * queries * heads * size + 2 * keys * kv_heads * size
    lse_bytes = 4 * queries * heads if case.get("lse") else 0
    return Cost(elements * dtype.itemsize + lse_bytes, 4 * pairs * heads * size)


def _case(
    rows: Sequence[tuple[int, int]], kv_heads: int, group: int, head_dim: int, block_size: int,
    **more: float
) -> Case:  # fmt: skip
    sizes = {"kv_heads": kv_heads, "group": group, "head_dim": head_dim, "block_size": block_size}
    return {"rows": tuple(rows), **sizes, **more}


_MIXED = ((1, 1), (1, 17), (40, 40), (1, 300), (5, 77), (0, 9), (64, 200), (33, 33), (1, 16))
OP = Op(
    name="paged_attention",
    function=paged_attention,
    reference=paged_attention_reference,
    make_inputs=_make_inputs,
    cases=(
        _case((), 1, 1, 64, 16),
        _case([(1, 1)], 3, 3, 64, 32),
        _case([(2, 2)], 1, 8, 80, 16),
        _case(_MIXED, 3, 3, 64, 32),
        _case(_MIXED, 2, 1, 80, 16),
        _case(_MIXED, 1, 7, 96, 64),
        _case(_MIXED, 2, 2, 128, 128),
        _case(_MIXED, 1, 4, 256, 256),
        _case(_MIXED, 2, 2, 64, 16, sliding_window=1),
        _case(_MIXED, 2, 3, 64, 16, sliding_window=24),
        _case(_MIXED, 1, 5, 64, 32, sliding_window=64),
        _case(_MIXED, 2, 2, 64, 16, soft_cap=2.0),
        _case(_MIXED, 2, 3, 16, 5, lse=True),
        _case(_MIXED, 1, 3, 48, 32, lse=True, soft_cap=3.0, sliding_window=40),
        _case(_MIXED, 1, 6, 64, 32, soft_cap=5.0, sliding_window=33),
    ),
    tolerance=FLOAT_TOLERANCE,
    cost=_cost,
    door=Door(_door, _fake, _door_inputs),
    bench={
        f"{model.name}, {name}": Bench(
            case=_case(rows, model.kv_heads, model.group, model.head_dim, 32),
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
