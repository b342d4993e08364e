"""Paged attention by torch's own operators: keys are gathered from their blocks, group of rows by
group, and go through its fused attention, or step by step where that cannot do what is asked.

Runs what `attention_plan` laid out; chooses nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from seesaw.ops.attention_plan import AttentionPlan, RowGroup, additive_mask
from seesaw.plan.attention_workspace import AttentionShape

# Shape letters: T tokens, H query heads, D head_dim, P blocks per row, B rows of a group, Q queries
# and C keys per row of it; in `_attend` H are K KV heads where query heads became rows.


def attend_with_torch(
    plan: AttentionPlan,
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    out_THD: torch.Tensor,
    lse_TH: torch.Tensor | None,
    sm_scale: float,
    soft_cap: float | None,
) -> None:
    """`paged_attention` of plain tiles into `out_THD` and, where given, `lse_TH`."""
    for group in plan.groups:
        _attend_group(group, plan, q_THD, k_cache, v_cache, out_THD, lse_TH, sm_scale, soft_cap)


def _attend_group(
    group: RowGroup,
    plan: AttentionPlan,
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    out_THD: torch.Tensor,
    lse_TH: torch.Tensor | None,
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
            o, lse = _attend(
                q_BKGD, k_BKCD, v_BKCD, group.mask, False, sm_scale, soft_cap, lse_TH is not None
            )
            o_NHD = o.reshape(num_rows, -1, shape.head_dim)
            lse_NH = None if lse is None else lse.reshape(num_rows, -1)
        else:
            o_NHD, lse_NH = _attend_queries(
                group, shape, q_BHQD, k_BKCD, v_BKCD, sm_scale, soft_cap, lse_TH is not None
            )
        out_THD[targets, heads] = o_NHD if group.real is None else o_NHD[group.real]
        if lse_TH is not None and lse_NH is not None:
            lse_TH[targets, heads] = lse_NH if group.real is None else lse_NH[group.real]


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
    want_lse: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Prompt chunks, in pieces of queries so that masks and scores stay bounded; `[B * Q, H, D]`
    and, if wanted, the log of the sum of exp `[B * Q, H]`."""
    num_rows, _, num_queries, _ = q_BHQD.shape
    num_keys, window = k_BKCD.shape[2], shape.sliding_window
    if group.causal and soft_cap is None and not want_lse:
        keys = slice(0, num_queries)
        k, v = k_BKCD[:, :, keys], v_BKCD[:, :, keys]
        o, _ = _attend(q_BHQD, k, v, None, True, sm_scale, None, False)
        return o.transpose(1, 2).flatten(0, 1), None
    piece = shape.queries_at_once(num_rows, num_keys)
    out = torch.empty_like(q_BHQD.transpose(1, 2), memory_format=torch.contiguous_format)
    lse = q_BHQD.new_empty(out.shape[:3], dtype=torch.float32) if want_lse else None
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
        q = q_BHQD[:, :, start:stop]
        o, o_lse = _attend(q, k, v, mask, False, sm_scale, soft_cap, want_lse)
        out[:, start:stop] = o.transpose(1, 2)
        if lse is not None and o_lse is not None:
            lse[:, start:stop] = o_lse.transpose(1, 2)
    return out.flatten(0, 1), None if lse is None else lse.flatten(0, 1)


def _attend(
    q_BHQD: torch.Tensor,
    k_BKCD: torch.Tensor,
    v_BKCD: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    sm_scale: float,
    soft_cap: float | None,
    want_lse: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of dense tensors `[B, H, Q, D]` and, if wanted, the log of the sum of exp
    `[B, H, Q]`; `mask` broadcasts over `[B, H, Q, C]`."""
    grouped = q_BHQD.shape[1] != k_BKCD.shape[1]
    if soft_cap is None and not want_lse:
        o = F.scaled_dot_product_attention(
            q_BHQD, k_BKCD, v_BKCD, mask, is_causal=is_causal, scale=sm_scale, enable_gqa=grouped
        )
        return o, None
    batch, num_kv = k_BKCD.shape[:2]
    num_queries, size = q_BHQD.shape[2:]
    q_BKND = q_BHQD.reshape(batch, num_kv, -1, size).float()
    scores = torch.matmul(q_BKND, k_BKCD.float().transpose(-1, -2)).mul_(sm_scale)
    if soft_cap is not None:
        scores.div_(soft_cap).tanh_().mul_(soft_cap)
    scores = scores.view(batch, num_kv, -1, num_queries, k_BKCD.shape[2])
    if mask is not None:
        scores += mask[:, :, None]
    lse = scores.logsumexp(-1).view(q_BHQD.shape[:3]) if want_lse else None
    weights = torch.softmax(scores, -1).flatten(2, 3)
    return torch.matmul(weights, v_BKCD.float()).view(q_BHQD.shape).to(q_BHQD.dtype), lse
