"""What `kernels/paged_decode.py` refuses, before anything is launched."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from seesaw.kernels.checks import FLOATS, expect, expect_tensor, expect_tensors

FP8 = torch.float8_e4m3fn


def check_decode(
    op: str,
    max_group: int,
    given: Mapping[str, torch.Tensor],
    sliding_window: int | None,
    soft_cap: float | None,
) -> None:
    """`given`: the tensors of a call by name, but those that are None. Raises UnsupportedError."""
    q, k_cache, table, lens = (given[n] for n in ("q", "k_cache", "block_table", "seq_lens"))
    expect_tensors(op, FLOATS, q=q)
    expect(op, "shape of q", list(q.shape), "[R, H, D]", q.dim() == 3)
    expect(op, "shape of k_cache", list(k_cache.shape), "[num_blocks, block_size, K, D]",
           k_cache.dim() == 4)  # fmt: skip
    (tokens, heads, size), (_, block_size, kv_heads, _) = q.shape, k_cache.shape
    expect(op, "head_dim", size, "16 to 256 in steps of 16", size in range(16, 257, 16))
    expect(op, "block_size", block_size, "at least 1", block_size >= 1)
    expect(op, "query and KV heads", (heads, kv_heads), f"1 to {max_group} query heads per KV head",
           kv_heads > 0 and heads in range(kv_heads, max_group * kv_heads + 1, kv_heads)
           )  # fmt: skip
    expect(op, "shapes of block_table and seq_lens", (list(table.shape), list(lens.shape)),
           "[R, P] and [R], or [R, S, P] and [R, S]",
           table.dim() in (2, 3) and table.shape[:-1] == lens.shape)  # fmt: skip
    rows = len(lens)
    expect(op, "rows of q and seq_lens", (tokens, rows), "as many, unless there is cu_seqlens_q",
           tokens == rows or "cu_seqlens_q" in given)  # fmt: skip
    pool_shape = (*k_cache.shape[:3], size)
    ints, floats = (torch.int32,), (torch.float32,)
    wanted: dict[str, tuple[tuple[torch.dtype, ...], tuple[int, ...]]] = {
        "q": (FLOATS, q.shape),
        "k_cache": ((q.dtype, FP8), pool_shape),
        "v_cache": ((k_cache.dtype,), pool_shape),
        "block_table": (ints, table.shape),
        "seq_lens": (ints, lens.shape),
        "k_scale": (floats, (kv_heads,)),
        "v_scale": (floats, (kv_heads,)),
        "cu_seqlens_q": (ints, (rows + 1,)),
        "out": ((q.dtype,), q.shape),
        "lse": (floats, (tokens, heads)),
    }
    for name, tensor in given.items():
        expect_tensor(op, name, tensor, *wanted[name], q.device)
    for name in given.keys() & {"seq_lens", "lse"}:
        expect(op, f"strides of {name}", given[name].stride(), "those of contiguous memory",
               given[name].is_contiguous())  # fmt: skip
    for name in given.keys() & {"k_scale", "v_scale"}:
        expect(op, f"{name} for a pool of", k_cache.dtype, FP8, k_cache.dtype == FP8)
    expect(op, "sliding_window", sliding_window, "None, or at least 1",
           sliding_window is None or sliding_window >= 1)  # fmt: skip
    expect(op, "soft_cap", soft_cap, "None, or above 0", soft_cap is None or soft_cap > 0)
