"""Blocks of a device pool from memory in the order of the host tier: ops/kv_scatter.py says what,
the kernel is in kv_tiles.py."""

from __future__ import annotations

import torch

from seesaw.kernels.kernel import Kernel
from seesaw.kernels.kv_tiles import _copy_tiles_kernel, builds, candidates, copy_tiles, default


def kv_scatter(
    pool_LBK2SD: torch.Tensor,
    tier_TKL2PD: torch.Tensor,
    blocks_N: torch.Tensor,
    slots_N: torch.Tensor,
    scale_K: torch.Tensor | None = None,
) -> None:
    """As `ops.kv_scatter`. Raises UnsupportedError."""
    copy_tiles(KERNEL, pool_LBK2SD, tier_TKL2PD, blocks_N, slots_N, scale_K)


KERNEL = Kernel(
    name="kv_scatter",
    function=_copy_tiles_kernel,
    builds=builds(gather=False),
    default=default,
    candidates=candidates,
)
KERNELS = (KERNEL,)
