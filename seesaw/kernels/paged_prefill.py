"""Causal attention of prompt chunks over the paged pool that holds their tokens and what came
before (formula, bytes and flops: ops/paged_prefill.py; the kernel: prefill.py).
"""

from __future__ import annotations

import torch

from seesaw.kernels.checks import expect, expect_one_of
from seesaw.kernels.kernel import Kernel
from seesaw.kernels.prefill import prefill_kernel
from seesaw.kernels.prefill_launch import (
    build,
    candidates,
    check_rows,
    default,
    expect_ints,
    launch,
    rows_of,
)
from seesaw.kernels.tuning import config_for

# Shape letters: T tokens, H query heads, K KV heads, G = H / K, D head_dim, R rows, P blocks per
# row.

OP = "paged_prefill"
FP8 = torch.float8_e4m3fn


def paged_prefill(
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    max_seqlen_q: int,
    sm_scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    k_scale_K: torch.Tensor | None = None,
    v_scale_K: torch.Tensor | None = None,
    skip_single: bool = False,
    out_THD: torch.Tensor | None = None,
    lse_TH: torch.Tensor | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """As `ops.paged_prefill`. Raises UnsupportedError."""
    expect(OP, "shape of the caches", list(k_cache.shape), "[num_blocks, block_size, K, D]",
           k_cache.dim() == 4)  # fmt: skip
    expect_one_of(OP, "dtype of the caches", k_cache.dtype, (q_THD.dtype, FP8))
    check_rows(OP, q_THD, k_cache, v_cache, cu_seqlens_q, sm_scale=sm_scale,
               sliding_window=sliding_window, soft_cap=soft_cap)  # fmt: skip
    num_rows, kv_heads = len(cu_seqlens_q) - 1, k_cache.shape[2]
    expect_ints(OP, "block_table", block_table, q_THD, (num_rows, None))
    expect_ints(OP, "seq_lens", seq_lens, q_THD, (num_rows,))
    for name, scale_K in (("k_scale", k_scale_K), ("v_scale", v_scale_K)):
        _check_scale(name, scale_K, kv_heads, q_THD.device)
    if out_THD is None:
        out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    else:
        _check_out("out", out_THD, q_THD.shape, q_THD.dtype, q_THD.device)
    if lse_TH is not None:
        _check_out("lse", lse_TH, q_THD.shape[:2], torch.float32, q_THD.device)
        expect(OP, "strides of lse", lse_TH.stride(), "contiguous", lse_TH.is_contiguous())
    elif return_lse:
        lse_TH = torch.empty(q_THD.shape[:2], dtype=torch.float32, device=q_THD.device)
    config = config_for(
        KERNEL,
        q_THD.device,
        dtype=_name(q_THD.dtype),
        kv_dtype=_name(k_cache.dtype),
        head_dim=q_THD.shape[2],
        block_size=k_cache.shape[1],
        rows=rows_of(max_seqlen_q, q_THD.shape[1] // kv_heads),
    )
    launch(
        config, q_THD, k_cache, v_cache, out_THD, lse_TH, cu_seqlens_q, sm_scale=sm_scale,
        soft_cap=soft_cap, sliding_window=sliding_window, block_table=block_table,
        seq_lens=seq_lens, k_scale_K=k_scale_K, v_scale_K=v_scale_K, skip_single=skip_single,
    )  # fmt: skip
    return (out_THD, lse_TH) if return_lse and lse_TH is not None else out_THD


def _check_scale(
    name: str, scale_K: torch.Tensor | None, kv_heads: int, device: torch.device
) -> None:
    if scale_K is not None:
        _check_out(name, scale_K, torch.Size((kv_heads,)), torch.float32, device)
        expect(OP, f"strides of {name}", scale_K.stride(), "contiguous", scale_K.is_contiguous())


def _check_out(
    name: str, x: torch.Tensor, shape: torch.Size, dtype: torch.dtype, device: torch.device
) -> None:
    expect(OP, f"shape of {name}", list(x.shape), list(shape), x.shape == shape)
    expect(OP, f"dtype of {name}", x.dtype, dtype, x.dtype == dtype)
    expect(OP, f"device of {name}", x.device, device, x.device == device)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


KERNEL = Kernel(
    name=OP,
    function=prefill_kernel,
    builds=(
        build("bfloat16", 128, 4, block_size=64),
        build("bfloat16", 128, 4, block_size=16),
        build("bfloat16", 128, 8, block_size=32, rows=64, skip_single=True),
        build("bfloat16", 128, 7, block_size=64, rows=16, skip_single=True),
        build("float16", 128, 16, block_size=256, lse=True, window=True, soft_cap=True),
        build("bfloat16", 64, 3, block_size=64),
        build("float16", 80, 1, block_size=128),
        build("bfloat16", 96, 2, block_size=16, window=True),
        build("bfloat16", 256, 2, block_size=64, soft_cap=True),
        build("bfloat16", 256, 2, block_size=16),
        build("float32", 64, 3, block_size=32, lse=True),
        build("float32", 128, 4, block_size=64),
        build("bfloat16", 128, 4, block_size=64, kv_dtype="float8_e4m3fn"),
        build("bfloat16", 128, 4, block_size=64, kv_dtype="uint8"),
        build("float16", 64, 4, block_size=16, kv_dtype="uint8"),
    ),
    default=default,
    candidates=candidates,
)
KERNELS = (KERNEL,)
