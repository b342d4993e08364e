"""Causal attention of whole prompts whose K and V lie beside their queries (formula, bytes and
flops: ops/ragged_prefill.py; the kernel: prefill.py).
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

# Shape letters: T tokens, H query heads, K KV heads, G = H / K, D head_dim, R rows.

OP = "ragged_prefill"


def ragged_prefill(
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    cu_seqlens: torch.Tensor,
    *,
    max_seqlen: int,
    sm_scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """As `ops.ragged_prefill`. Raises UnsupportedError."""
    given = {"q": q_THD, "k": k_TKD, "v": v_TKD, "cu_seqlens": cu_seqlens}
    check_prefill(OP, given, sm_scale=sm_scale, sliding_window=sliding_window, soft_cap=soft_cap)
    num_tokens, heads, size = q_THD.shape
    out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    lse_TH = None
    if return_lse:
        lse_TH = torch.empty((num_tokens, heads), dtype=torch.float32, device=q_THD.device)
    config = config_for(
        KERNEL,
        q_THD.device,
        dtype=str(q_THD.dtype).removeprefix("torch."),
        head_dim=size,
        rows=rows_of(max_seqlen, heads // k_TKD.shape[1]),
    )
    launch(config, q_THD, k_TKD, v_TKD, out_THD, lse_TH, cu_seqlens, sm_scale=sm_scale,
           soft_cap=soft_cap, sliding_window=sliding_window)  # fmt: skip
    return out_THD if lse_TH is None else (out_THD, lse_TH)


KERNEL = Kernel(
    name=OP,
    function=prefill_kernel,
    builds=(
        build("bfloat16", 128, 4),
        build("bfloat16", 128, 4, lse=True, window=True, soft_cap=True),
        build("bfloat16", 128, 7, rows=64),
        build("bfloat16", 128, 8, rows=16),
        build("bfloat16", 64, 3),
        build("float16", 80, 1),
        build("float16", 96, 16),
        build("bfloat16", 256, 2, window=True),
        build("float32", 64, 3),
        build("float32", 256, 1, lse=True),
    ),
    default=default,
    candidates=candidates,
    # one number, with all of window, soft cap and lse on sm_86 and sm_89; the alternative is tiles
    # of half the size
    max_spills=8,
)
KERNELS = (KERNEL,)
