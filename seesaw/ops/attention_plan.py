"""Sorts the rows of a step into groups that attend together; once per step, for all its layers.

Rows of like length are padded to one shape, so that few large calls replace many small ones;
padding and memory are bounded by the constants of `plan/attention_workspace`. Knows block tables
and lengths, touches no keys or values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from seesaw.plan.attention_workspace import (
    GATHER_BYTES,
    MAX_PADDING,
    MAX_WASTE,
    SCORE_BYTES,
    AttentionShape,
    round_up,
)

# Shape letters: B rows of a group, Q queries per row, C keys per row, P blocks per row.


@dataclass(frozen=True, slots=True)
class RowGroup:
    """B rows padded to Q queries and C = P * block_size keys. Index tensors are int64.

    token_index_BQ  where each query lies in T; padding repeats the row's last one
    real            which of the B * Q queries are real, None = all
    block_ids_BP    blocks of the keys, from the first that any query sees
    outside         (row, key) pairs that belong to no key, or None
    first_query_B   place of each row's first query among its keys
    decode          Q = 1; then `mask` [B, 1, 1, C] is 0 or -inf, None = all keys count
    causal          row i sees keys 0..i and nothing else masks, so no mask is needed
    """

    num_queries: int
    token_index: torch.Tensor
    real: torch.Tensor | None
    block_ids_BP: torch.Tensor
    outside: tuple[torch.Tensor, torch.Tensor] | None
    first_query_B: torch.Tensor
    first_query_min: int
    first_query_max: int
    decode: bool
    causal: bool
    mask: torch.Tensor | None
    kv_heads_per_pass: int


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """`scratch`: K and V are gathered into it, group after group and layer after layer; fresh
    memory each time would cost more in page faults than the copy itself."""

    shape: AttentionShape
    groups: list[RowGroup]
    scratch: torch.Tensor


@dataclass(slots=True)
class _Row:
    """`lo`: first key looked at, a multiple of the block size; `keys`: from there, whole blocks."""

    index: int
    token: int
    queries: int
    kind: int
    lo: int
    seq_len: int
    keys: int


_DECODE, _CAUSAL, _GENERAL = range(3)


def plan_attention(
    block_table_RP: torch.Tensor,
    cu_seqlens_q: Sequence[int],
    seq_lens: Sequence[int],
    shape: AttentionShape,
    dtype: torch.dtype,
) -> AttentionPlan:
    """Plan for rows `cu_seqlens_q[r] .. cu_seqlens_q[r + 1]` of T, which are the last ones of
    `seq_lens[r]` tokens. Rows without tokens are left out. `dtype` is q's (for masks).
    """
    rows = []
    for index, seq_len in enumerate(seq_lens):
        queries = cu_seqlens_q[index + 1] - cu_seqlens_q[index]
        assert 0 <= queries <= seq_len, f"row {index}: {queries} queries, {seq_len} tokens"
        if queries:
            rows.append(_row(index, cu_seqlens_q[index], queries, seq_len, shape))
    rows.sort(key=lambda row: (row.kind, row.queries, row.keys))
    groups: list[RowGroup] = []
    start = 0
    for stop in range(1, len(rows) + 1):
        if stop == len(rows) or not _fits(rows[start : stop + 1], shape):
            groups.append(_group(rows[start:stop], block_table_RP, shape, dtype))
            start = stop
    scratch = torch.empty(
        2 * max((_gathered(group, shape) for group in groups), default=0),
        dtype=dtype,
        device=block_table_RP.device,
    )
    return AttentionPlan(shape, groups, scratch)


def _gathered(group: RowGroup, shape: AttentionShape) -> int:
    """Elements of K of one pass."""
    keys = group.block_ids_BP.numel() * shape.block_size
    return keys * group.kv_heads_per_pass * shape.head_dim


def _row(index: int, token: int, queries: int, seq_len: int, shape: AttentionShape) -> _Row:
    first, window, lo = seq_len - queries, shape.sliding_window, 0
    if window is not None:
        lo = max(0, first - window + 1) // shape.block_size * shape.block_size
    if queries == 1:
        kind = _DECODE
    elif first == 0 and (window is None or seq_len <= window):
        kind = _CAUSAL
    else:
        kind = _GENERAL
    keys = round_up(seq_len - lo, shape.block_size)
    return _Row(index, token, queries, kind, lo, seq_len, keys)


def _fits(rows: list[_Row], shape: AttentionShape) -> bool:
    """Whether `rows` (sorted) may be one group: bounded padding and memory."""
    if rows[0].kind != rows[-1].kind:
        return False
    queries, keys = rows[-1].queries, max(row.keys for row in rows)
    if len(rows) * queries > (1 + MAX_WASTE) * sum(row.queries for row in rows) + MAX_PADDING:
        return False
    work = sum(row.queries * row.keys for row in rows)
    if len(rows) * queries * keys > (1 + MAX_WASTE) * work + len(rows) * queries * shape.block_size:
        return False
    masked = rows[0].kind == _GENERAL or shape.unfused
    if masked and len(rows) * queries * keys * shape.score_bytes > SCORE_BYTES:
        return False
    return len(rows) * shape.kv_bytes(keys, shape.num_kv_heads) <= GATHER_BYTES


def _group(
    rows: list[_Row], block_table_RP: torch.Tensor, shape: AttentionShape, dtype: torch.dtype
) -> RowGroup:
    device = block_table_RP.device
    keys, queries = max(row.keys for row in rows), rows[-1].queries
    columns = [[row.index, row.token, row.queries, row.lo, row.seq_len] for row in rows]
    index_B, token_B, queries_B, lo_B, seq_len_B = torch.tensor(columns, device=device).T
    step_Q = torch.arange(queries, device=device)
    token_BQ = token_B[:, None] + torch.minimum(step_Q, queries_B[:, None] - 1)
    block_P = torch.arange(keys // shape.block_size, device=device)
    columns_BP = (lo_B // shape.block_size)[:, None] + block_P
    # past its end a row repeats the table's last column; those keys are outside
    columns_BP.clamp_(max=block_table_RP.shape[1] - 1)
    key_C = torch.arange(keys, device=device)
    outside_BC = key_C >= (seq_len_B - lo_B)[:, None]
    first_B = seq_len_B - queries_B - lo_B
    firsts = [row.seq_len - row.queries - row.lo for row in rows]
    decode = rows[0].kind == _DECODE
    hidden_BC = outside_BC
    if decode and shape.sliding_window is not None:
        hidden_BC = outside_BC | (key_C <= first_B[:, None] - shape.sliding_window)
    masked = decode and bool(hidden_BC.any())
    padded = any(row.queries != queries for row in rows)
    pairs = outside_BC.nonzero()
    per_head = len(rows) * shape.kv_bytes(keys, 1)
    return RowGroup(
        num_queries=queries,
        token_index=token_BQ.flatten(),
        real=(step_Q < queries_B[:, None]).flatten().nonzero().flatten() if padded else None,
        block_ids_BP=block_table_RP[index_B[:, None], columns_BP].long(),
        outside=(pairs[:, 0], pairs[:, 1]) if len(pairs) else None,
        first_query_B=first_B,
        first_query_min=min(firsts),
        first_query_max=max(firsts),
        decode=decode,
        causal=rows[0].kind == _CAUSAL,
        mask=additive_mask(~hidden_BC[:, None, None], dtype) if masked else None,
        kv_heads_per_pass=max(1, min(shape.num_kv_heads, GATHER_BYTES // per_head)),
    )


def additive_mask(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where `visible`, else -inf, in the dtype that the scores are added in."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, float("-inf"))
