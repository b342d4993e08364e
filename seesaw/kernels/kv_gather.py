"""Blocks of a device pool to memory in the order of the host tier: ops/kv_gather.py says what, the
kernel is in kv_tiles.py."""

from __future__ import annotations

import torch

from seesaw.kernels.kernel import Kernel
from seesaw.kernels.kv_tiles import _copy_tiles_kernel, builds, candidates, copy_tiles, default


def kv_gather(
    pool_LBK2SD: torch.Tensor,
    tier_TKL2PD: torch.Tensor,
    blocks_N: torch.Tensor,
    slots_N: torch.Tensor,
    scale_K: torch.Tensor | None = None,
) -> None:
    """As `ops.kv_gather`. Raises UnsupportedError."""
    copy_tiles(KERNEL, pool_LBK2SD, tier_TKL2PD, blocks_N, slots_N, scale_K)


KERNEL = Kernel(
    name="kv_gather",
    function=_copy_tiles_kernel,
    builds=builds(gather=True),
    default=default,
    candidates=candidates,
)
KERNELS = (KERNEL,)
