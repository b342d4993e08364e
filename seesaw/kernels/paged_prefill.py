"""Causal attention of prompt chunks over the paged pool that holds their tokens and what came
before (formula, bytes and flops: ops/paged_prefill.py; the kernel: prefill.py).
"""

from __future__ import annotations

import torch

from seesaw.kernels.kernel import Kernel
from seesaw.kernels.prefill import prefill_kernel
from seesaw.kernels.prefill_checks import check_prefill
from seesaw.kernels.prefill_launch import (
    build,
    candidates,
    default,
    launch,
    rows_of,
)
from seesaw.kernels.tuning import config_for

# Shape letters: T tokens, H query heads, K KV heads, G = H / K, D head_dim, R rows, P blocks per
# row.

OP = "paged_prefill"


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
    given = {
        "q": q_THD,
        "k": k_cache,
        "v": v_cache,
        "block_table": block_table,
        "cu_seqlens": cu_seqlens_q,
        "seq_lens": seq_lens,
        "k_scale": k_scale_K,
        "v_scale": v_scale_K,
        "out": out_THD,
        "lse": lse_TH,
    }
    there = {name: tensor for name, tensor in given.items() if tensor is not None}
    check_prefill(OP, there, sm_scale=sm_scale, sliding_window=sliding_window, soft_cap=soft_cap)
    if out_THD is None:
        out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    if lse_TH is None and return_lse:
        lse_TH = torch.empty(q_THD.shape[:2], dtype=torch.float32, device=q_THD.device)
    config = config_for(
        KERNEL,
        q_THD.device,
        dtype=_name(q_THD.dtype),
        kv_dtype=_name(k_cache.dtype),
        head_dim=q_THD.shape[2],
        block_size=k_cache.shape[1],
        rows=rows_of(max_seqlen_q, q_THD.shape[1] // k_cache.shape[2]),
    )
    launch(
        config, q_THD, k_cache, v_cache, out_THD, lse_TH, cu_seqlens_q, sm_scale=sm_scale,
        soft_cap=soft_cap, sliding_window=sliding_window, block_table=block_table,
        seq_lens=seq_lens, k_scale_K=k_scale_K, v_scale_K=v_scale_K, skip_single=skip_single,
    )  # fmt: skip
    return (out_THD, lse_TH) if return_lse and lse_TH is not None else out_THD


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
        build("bfloat16", 256, 2, block_size=16, window=True),
        build("float32", 64, 3, block_size=32, lse=True),
        build("bfloat16", 128, 4, block_size=64, kv_dtype="float8_e4m3fn"),
        build("bfloat16", 128, 4, block_size=64, kv_dtype="uint8"),
    ),
    default=default,
    candidates=candidates,
)
KERNELS = (KERNEL,)
