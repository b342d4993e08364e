"""KV of blocks from memory in the order of the host tier to a device pool, in one launch: the way
back of `kv_gather`.

    pool[l, b, k, v, i] = tier[s div R, k, l, v, (s mod R) S + i]     for the n-th b of blocks and
                                                                      s of slots;  R = P / S

Bytes: the blocks read once, written once. No arithmetic but the cast: float8_e4m3fn in the tier
stands for value x scale of the head, rounded once to the pool's dtype.
"""

from __future__ import annotations

import torch

from seesaw.ops.kv_gather import CASES, TOLERANCE, bench, cost, index_of, make_inputs, parts_of
from seesaw.ops.registry import Door, Op
from seesaw.ops.triton_backend import on_triton

# Shape letters: as in kv_gather.py.


def kv_scatter(
    pool_LBK2SD: torch.Tensor,
    tier_TKL2PD: torch.Tensor,
    blocks_N: torch.Tensor,
    slots_N: torch.Tensor,
    scale_K: torch.Tensor | None = None,
) -> None:
    """Copy `slots_N` of the tier to blocks `blocks_N` of the pool; arguments as in `kv_gather`,
    here blocks all different."""
    if on_triton(pool_LBK2SD):
        from seesaw.kernels.kv_scatter import kv_scatter as launch

        launch(pool_LBK2SD, tier_TKL2PD, blocks_N, slots_N, scale_K)
        return
    at = index_of(tier_TKL2PD, pool_LBK2SD, slots_N)
    blocks = parts_of(tier_TKL2PD, pool_LBK2SD.shape[4])[at]
    if tier_TKL2PD.dtype != pool_LBK2SD.dtype:
        scale = 1.0 if scale_K is None else scale_K.view(-1, 1, 1, 1, 1)
        blocks = (blocks.float() * scale).to(pool_LBK2SD.dtype)
    pool_LBK2SD.index_copy_(1, blocks_N.long(), blocks.permute(2, 0, 1, 3, 4, 5))


def kv_scatter_reference(
    pool_LBK2SD: torch.Tensor,
    tier_TKL2PD: torch.Tensor,
    blocks_N: torch.Tensor,
    slots_N: torch.Tensor,
    scale_K: torch.Tensor | None = None,
) -> None:
    size = pool_LBK2SD.shape[4]
    for block, slot in zip(blocks_N.tolist(), slots_N.tolist(), strict=True):
        first, part = divmod(slot, tier_TKL2PD.shape[4] // size)
        content = tier_TKL2PD[first, :, :, :, part * size : (part + 1) * size]
        if tier_TKL2PD.dtype != pool_LBK2SD.dtype:
            content = content.float()
            if scale_K is not None:
                content = content * scale_K[:, None, None, None, None]
        pool_LBK2SD[:, block] = content.transpose(0, 1).to(pool_LBK2SD.dtype)


OP = Op(
    name="kv_scatter",
    function=kv_scatter,
    reference=kv_scatter_reference,
    make_inputs=make_inputs,
    cases=CASES,
    tolerance=TOLERANCE,
    cost=cost,
    bench=bench("to_device"),
    door=Door(kv_scatter, lambda *_: None),
    mutates=("pool_LBK2SD",),
)
