"""Paged attention by the C++ kernel (csrc/cpu/attention.h): what it takes, and the call."""

from __future__ import annotations

from types import ModuleType

import torch

from seesaw.layout.kv import PIECE_TOKENS
from seesaw.ops.native import usable

# Shape letters: T tokens, H query heads, D head_dim.


def fits(
    q_THD: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, sm_scale: float
) -> bool:
    """Whether the C++ kernel takes these: equal pools of contiguous heads, whole vectors."""
    size = q_THD.shape[2]
    return (
        usable(q_THD, k_cache, v_cache)
        and k_cache.stride() == v_cache.stride()
        and k_cache.stride(3) == 1
        and size % 16 == 0
        and 16 <= size <= 256
        and sm_scale > 0
    )


def attend_with_cpp(
    cpu: ModuleType,
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlens_q: list[int],
    seq_lens: list[int],
    sm_scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
    panels: bool,
    return_lse: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    num_blocks, block_size, kv_heads, size = k_cache.shape
    tokens, heads, _ = q_THD.shape
    if v_cache.shape != k_cache.shape or q_THD.shape[2] != size or heads % kv_heads:
        shapes = ", ".join(str(list(x.shape)) for x in (q_THD, k_cache, v_cache))
        raise ValueError(f"q and the caches of K and V do not fit: {shapes}")
    if cu_seqlens_q[-1] != tokens or len(block_table) != len(seq_lens):
        raise ValueError(
            f"{tokens} queries and a block table of {len(block_table)} rows, but cu_seqlens_q ends "
            f"at {cu_seqlens_q[-1]} and there are {len(seq_lens)} seq_lens"
        )
    if panels and (block_size % PIECE_TOKENS or k_cache.stride(1) != size):
        raise ValueError(
            f"tiles in panels are contiguous and of a multiple of {PIECE_TOKENS} tokens; got "
            f"block_size {block_size} with strides {k_cache.stride()}"
        )
    if q_THD.stride(2) != 1:
        q_THD = q_THD.contiguous()
    block_table = block_table.to(torch.int32).contiguous()
    out_THD = torch.empty((tokens, heads, size), dtype=q_THD.dtype)
    lse_TH = torch.empty((tokens, heads), dtype=torch.float32) if return_lse else None
    group, (by_block, by_token, by_head, _) = heads // kv_heads, k_cache.stride()
    cpu.paged_attention(
        itemsize=q_THD.itemsize,
        q=q_THD.data_ptr(),
        q_strides=(q_THD.stride(0), group * q_THD.stride(1), q_THD.stride(1)),
        k_cache=k_cache.data_ptr(),
        v_cache=v_cache.data_ptr(),
        strides=(by_block, by_head, by_token),
        num_blocks=num_blocks,
        block_size=block_size,
        num_heads=kv_heads,
        head_dim=size,
        panels=panels,
        group=group,
        block_table=block_table.data_ptr(),
        table_stride=block_table.stride(0),
        table_width=block_table.shape[1],
        cu_seqlens_q=cu_seqlens_q,
        seq_lens=seq_lens,
        scale=sm_scale,
        soft_cap=soft_cap or 0.0,
        window=sliding_window or 0,
        out=out_THD.data_ptr(),
        lse=0 if lse_TH is None else lse_TH.data_ptr(),
    )
    return out_THD, lse_TH
