"""What the launchers of prefill attention refuse, before anything is launched."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from seesaw.kernels.checks import FLOATS, expect, expect_tensor, expect_tensors

MAX_GROUP = 16
FP8 = torch.float8_e4m3fn


def check_prefill(
    op: str,
    given: Mapping[str, torch.Tensor],
    *,
    sm_scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
) -> None:
    """`given`: the tensors of a call by name, but those that are None; paged where there is a
    block_table. Raises UnsupportedError."""
    q, k, cu_seqlens = given["q"], given["k"], given["cu_seqlens"]
    paged = "block_table" in given
    expect_tensors(op, FLOATS, q=q)
    expect(op, "shape of q", list(q.shape), "[T, H, D]", q.dim() == 3)
    expect(op, "shape of k", list(k.shape),
           "[num_blocks, block_size, K, D]" if paged else "[T, K, D]",
           k.dim() == (4 if paged else 3))  # fmt: skip
    (tokens, heads, size), (*places, kv_heads, _) = q.shape, k.shape
    expect(op, "head_dim", size, "16 to 256 in steps of 16", size in range(16, 257, 16))
    expect(op, "block_size", places[-1], "at least 1", not paged or places[-1] >= 1)
    expect(op, "query and KV heads", (heads, kv_heads), f"1 to {MAX_GROUP} query heads per KV head",
           kv_heads > 0 and heads in range(kv_heads, MAX_GROUP * kv_heads + 1, kv_heads)
           )  # fmt: skip
    expect(op, "shape of cu_seqlens", list(cu_seqlens.shape), "[R + 1]",
           cu_seqlens.dim() == 1 and len(cu_seqlens) >= 1)  # fmt: skip
    rows = len(cu_seqlens) - 1
    kv_shape = (*places, kv_heads, size) if paged else (tokens, kv_heads, size)
    ints, floats = (torch.int32,), (torch.float32,)
    wanted: dict[str, tuple[tuple[torch.dtype, ...], tuple[int, ...]]] = {
        "q": (FLOATS, q.shape),
        "k": ((q.dtype, FP8) if paged else (q.dtype,), kv_shape),
        "v": ((k.dtype,), kv_shape),
        "cu_seqlens": (ints, (rows + 1,)),
        "seq_lens": (ints, (rows,)),
        "k_scale": (floats, (kv_heads,)),
        "v_scale": (floats, (kv_heads,)),
        "out": ((q.dtype,), q.shape),
        "lse": (floats, (tokens, heads)),
    }
    if paged:
        table = given["block_table"]
        expect(op, "shape of block_table", list(table.shape), f"[{rows}, P]",
               table.dim() == 2 and len(table) == rows)  # fmt: skip
        wanted["block_table"] = (ints, table.shape)
    for name, tensor in given.items():
        expect_tensor(op, name, tensor, *wanted[name], q.device)
    for name in given.keys() & {"lse"}:
        expect(op, f"strides of {name}", given[name].stride(), "those of contiguous memory",
               given[name].is_contiguous())  # fmt: skip
    for name in given.keys() & {"k_scale", "v_scale"}:
        expect(op, f"{name} for a pool of", k.dtype, FP8, k.dtype == FP8)
    expect(op, "sm_scale", sm_scale, "above 0", sm_scale > 0)
    expect(op, "sliding_window", sliding_window, "None, or at least 1",
           sliding_window is None or sliding_window >= 1)  # fmt: skip
    expect(op, "soft_cap", soft_cap, "None, or above 0", soft_cap is None or soft_cap > 0)
