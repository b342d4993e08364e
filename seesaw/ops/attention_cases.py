"""Cases, inputs, costs and doors of the attention ops: what their tests and benches take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from seesaw.ops.registry import Case, Cost

# Shape letters: T tokens, H query heads, D head_dim.


def fake_attention(
    q_THD: torch.Tensor, *_: object, **__: object
) -> tuple[torch.Tensor, torch.Tensor]:
    """Results and their lse, without data."""
    return q_THD.new_empty(q_THD.shape), q_THD.new_empty(q_THD.shape[:2], dtype=torch.float32)


def door_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Doors always return the lse, in new tensors, of all rows."""
    left = ("skip_single", "out_THD", "lse_TH", "return_lse")
    return {name: value for name, value in inputs.items() if name not in left}


def paged_case(
    rows: Sequence[tuple[int, int]], kv_heads: int, group: int, head_dim: int, block_size: int,
    **more: float
) -> Case:  # fmt: skip
    """`rows`: (queries, tokens whose KV counts) of each. `more`: `sliding_window`, `soft_cap`,
    `lse`, `fp8` (of the pool), `skip_single` (rows of one query are not computed)."""
    sizes = {"kv_heads": kv_heads, "group": group, "head_dim": head_dim, "block_size": block_size}
    return {"rows": tuple(rows), **sizes, **more}


def paged_inputs(generator: torch.Generator, case: Case, dtype: torch.dtype) -> dict[str, Any]:
    """Those of `paged_attention`: blocks in random order, block 0 of nobody."""
    rows, block_size, size = case["rows"], case["block_size"], case["head_dim"]
    kv_heads, heads = case["kv_heads"], case["kv_heads"] * case["group"]
    counts = [-(-seq_len // block_size) for _, seq_len in rows]
    pool_shape = (sum(counts) + 1, kv_heads, 2, block_size, size)
    pool = torch.randn(pool_shape, generator=generator)
    pool = pool.to(torch.float8_e4m3fn if case.get("fp8") else dtype)
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
        "return_lse": bool(case.get("lse")),
    }


def paged_cost(case: Case, dtype: torch.dtype) -> Cost:
    """Of a row that is not computed nothing is read."""
    size, kv_heads, window = case["head_dim"], case["kv_heads"], case.get("sliding_window")
    heads, kv_bytes = kv_heads * case["group"], 1 if case.get("fp8") else dtype.itemsize
    total = queries = keys = pairs = 0
    for count, seq_len in case["rows"]:
        total += count
        if count == 0 or (count == 1 and case.get("skip_single")):
            continue
        queries += count
        pairs += sum(min(p + 1, window or p + 1) for p in range(seq_len - count, seq_len))
        keys += min(seq_len, count - 1 + window) if window else seq_len
    elements = (queries + total) * heads * size
    num_bytes = elements * dtype.itemsize + 2 * keys * kv_heads * size * kv_bytes
    num_bytes += 4 * total * heads if case.get("lse") else 0
    return Cost(num_bytes, 4 * pairs * heads * size)
