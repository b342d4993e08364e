"""Causal attention of a step's tokens over the paged KV pool: decode rows and prompt chunks alike.

    out[i] = softmax(sm_scale * q[i] K^T, keys up to i, within the window) V   per query head

Bytes: K and V of every row once (decode is bound by these), q and out; flops: 4 * D per (query,
visible key, query head) (prefill is bound by these). On CPU and CUDA keys are gathered from their
blocks and go through torch's fused attention; a backend with its own kernel is picked in
`paged_attention`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from seesaw.ops.attention_plan import AttentionPlan, RowGroup, additive_mask, plan_attention
from seesaw.ops.registry import FLOAT_TOLERANCE, Case, Cost, Op
from seesaw.plan.attention_workspace import AttentionShape

# Shape letters: T tokens, H query heads, K KV heads (of a pass), G = H / K, D head_dim, R rows, P
# blocks per row, B rows of a group, Q queries and C keys per row of it.


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
    plan: AttentionPlan | None = None,
) -> torch.Tensor:
    """Attention of ragged rows; returns `[T, H, D]` of q's dtype, contiguous.

    q_THD            queries of all rows, one row after another, any strides
    k_cache, v_cache [num_blocks, block_size, K, D], any strides with the last dim contiguous; they
                     hold this step's tokens already; query head h reads KV head h // G
    block_table      [R, P] int32 or int64; entries past a row's last block are not used
    cu_seqlens_q     R + 1 offsets into T, on the host; row r has the LAST tokens of its sequence
    seq_lens         tokens of each row whose KV counts, this step's included, on the host
    sliding_window   a query sees this many keys, itself included; None = all before it
    soft_cap         scores become soft_cap * tanh(score / soft_cap)
    plan             of `plan_attention` for the same rows and window; one serves all layers

    What the pool holds beyond `seq_lens` has no influence, be it NaN. Beside its output the call
    allocates at most `scratch_bytes` (the plan's) + `workspace_bytes` of `attention_workspace`.
    """
    if plan is None:
        shape = AttentionShape(
            num_heads=q_THD.shape[1],
            num_kv_heads=k_cache.shape[2],
            head_dim=q_THD.shape[2],
            block_size=k_cache.shape[1],
            element_bytes=q_THD.element_size(),
            sliding_window=sliding_window,
            unfused=soft_cap is not None or q_THD.is_cuda,
        )
        plan = plan_attention(block_table, cu_seqlens_q, seq_lens, shape, q_THD.dtype)
    assert plan.shape.sliding_window == sliding_window, "the plan is for another window"
    out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    for group in plan.groups:
        _attend_group(group, plan, q_THD, k_cache, v_cache, out_THD, sm_scale, soft_cap)
    return out_THD


def _attend_group(
    group: RowGroup,
    plan: AttentionPlan,
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    out_THD: torch.Tensor,
    sm_scale: float,
    soft_cap: float | None,
) -> None:
    shape = plan.shape
    k_scratch, v_scratch = plan.scratch.chunk(2)
    heads_per_kv = shape.num_heads // shape.num_kv_heads
    num_rows = len(group.block_ids_BP)
    q_BQHD = q_THD[group.token_index].view(num_rows, group.num_queries, *q_THD.shape[1:])
    targets = group.token_index if group.real is None else group.token_index[group.real]
    for first in range(0, shape.num_kv_heads, group.kv_heads_per_pass):
        stop = min(first + group.kv_heads_per_pass, shape.num_kv_heads)
        k_BKCD = _gather(k_cache, group, first, stop, k_scratch)
        v_BKCD = _gather(v_cache, group, first, stop, v_scratch)
        heads = slice(first * heads_per_kv, stop * heads_per_kv)
        q_BHQD = q_BQHD[:, :, heads].transpose(1, 2)
        if group.decode:
            # the query heads of a KV head become rows of one small matrix: KV is read once
            q_BKGD = q_BHQD.reshape(num_rows, stop - first, heads_per_kv, -1)
            o = _attend(q_BKGD, k_BKCD, v_BKCD, group.mask, False, sm_scale, soft_cap)
            o_NHD = o.reshape(num_rows, -1, shape.head_dim)
        else:
            o = _attend_queries(group, shape, q_BHQD, k_BKCD, v_BKCD, sm_scale, soft_cap)
            o_NHD = o.flatten(0, 1)
        out_THD[targets, heads] = o_NHD if group.real is None else o_NHD[group.real]


def _gather(
    cache: torch.Tensor, group: RowGroup, first: int, stop: int, scratch: torch.Tensor
) -> torch.Tensor:
    """Keys or values of KV heads first..stop of each row `[B, K, C, D]`, 0 where there is no key;
    in the memory of `scratch`."""
    num_blocks, block_size, _, size = cache.shape
    num_rows, blocks_per_row = group.block_ids_BP.shape
    by_block, by_token, by_head, _ = cache.stride()
    tile = block_size * size
    if by_token == size and by_block % tile == 0 and by_head % tile == 0:
        # a head's tokens of a block lie together: address such tiles, whatever lies between them
        head_K = torch.arange(first, stop, device=cache.device)
        tiles_BKP = group.block_ids_BP[:, None] * (by_block // tile) + (
            head_K * (by_head // tile)
        ).view(1, -1, 1)
        count = (num_blocks - 1) * (by_block // tile) + (stop - 1) * (by_head // tile) + 1
        grid = cache.as_strided((count, tile), (tile, 1))
        flat = scratch[: tiles_BKP.numel() * tile].view(-1, tile)
        torch.index_select(grid, 0, tiles_BKP.flatten(), out=flat)
        kv_BKCD = flat.view(num_rows, stop - first, blocks_per_row * block_size, size)
    else:
        block_ids = group.block_ids_BP.flatten()
        flat = scratch[: len(block_ids) * tile * (stop - first)]
        flat = flat.view(len(block_ids), block_size, stop - first, size)
        torch.index_select(cache[:, :, first:stop], 0, block_ids, out=flat)
        by_row = flat.view(num_rows, blocks_per_row * block_size, stop - first, size)
        kv_BKCD = by_row.transpose(1, 2)
    if group.outside is not None:
        row, key = group.outside
        kv_BKCD[row, :, key] = 0  # else a NaN there would spread through 0 * NaN
    return kv_BKCD


def _attend_queries(
    group: RowGroup,
    shape: AttentionShape,
    q_BHQD: torch.Tensor,
    k_BKCD: torch.Tensor,
    v_BKCD: torch.Tensor,
    sm_scale: float,
    soft_cap: float | None,
) -> torch.Tensor:
    """Prompt chunks, in pieces of queries so that masks and scores stay bounded; `[B, Q, H, D]`."""
    num_rows, _, num_queries, _ = q_BHQD.shape
    num_keys, window = k_BKCD.shape[2], shape.sliding_window
    if group.causal and soft_cap is None:
        keys = slice(0, num_queries)
        k, v = k_BKCD[:, :, keys], v_BKCD[:, :, keys]
        return _attend(q_BHQD, k, v, None, True, sm_scale, None).transpose(1, 2)
    piece = shape.queries_at_once(num_rows, num_keys)
    out = torch.empty_like(q_BHQD.transpose(1, 2), memory_format=torch.contiguous_format)
    for start in range(0, num_queries, piece):
        stop = min(start + piece, num_queries)
        last = min(num_keys, group.first_query_max + stop)
        first = 0 if window is None else max(0, group.first_query_min + start - window + 1)
        query = group.first_query_B[:, None] + torch.arange(start, stop, device=out.device)
        key = torch.arange(first, last, device=out.device)
        visible = key <= query[:, :, None]
        if window is not None:
            visible &= key > query[:, :, None] - window
        mask = additive_mask(visible[:, None], q_BHQD.dtype)
        k, v = k_BKCD[:, :, first:last], v_BKCD[:, :, first:last]
        o = _attend(q_BHQD[:, :, start:stop], k, v, mask, False, sm_scale, soft_cap)
        out[:, start:stop] = o.transpose(1, 2)
    return out


def _attend(
    q_BHQD: torch.Tensor,
    k_BKCD: torch.Tensor,
    v_BKCD: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    sm_scale: float,
    soft_cap: float | None,
) -> torch.Tensor:
    """Attention of dense tensors `[B, H, Q, D]`; `mask` broadcasts over `[B, H, Q, C]`."""
    grouped = q_BHQD.shape[1] != k_BKCD.shape[1]
    if soft_cap is None:
        return F.scaled_dot_product_attention(
            q_BHQD, k_BKCD, v_BKCD, mask, is_causal=is_causal, scale=sm_scale, enable_gqa=grouped
        )
    batch, num_kv = k_BKCD.shape[:2]
    num_queries, size = q_BHQD.shape[2:]
    q_BKND = q_BHQD.reshape(batch, num_kv, -1, size).float()
    scores = torch.matmul(q_BKND, k_BKCD.float().transpose(-1, -2)).mul_(sm_scale / soft_cap)
    scores = scores.tanh_().mul_(soft_cap).view(batch, num_kv, -1, num_queries, k_BKCD.shape[2])
    if mask is not None:
        scores += mask[:, :, None]
    weights = torch.softmax(scores, -1).flatten(2, 3)
    return torch.matmul(weights, v_BKCD.float()).view(q_BHQD.shape).to(q_BHQD.dtype)


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
) -> torch.Tensor:
    out = torch.empty_like(q_THD)
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
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        out[start:stop] = torch.einsum("hqk,khd->qhd", weights, v).to(out.dtype)
    return out


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
    return Cost(elements * dtype.itemsize, 4 * pairs * heads * size)


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
        _case(_MIXED, 1, 6, 64, 32, soft_cap=5.0, sliding_window=33),
    ),
    tolerance=FLOAT_TOLERANCE,
    cost=_cost,
)
