"""The device's KV pool: one tensor, viewed per layer. Which block belongs to whom is the scheduler's business."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(slots=True)
class KVCache:
    """One pool `[layer][block][kv_head][k|v][block_size][head_dim]`, contiguous.

    Ops take `k_cache(layer)` and `v_cache(layer)`: views `[num_blocks, block_size, num_kv_heads, head_dim]` with the
    last dim contiguous and any other strides, so that another engine's pool fits as well.
    """

    pool: torch.Tensor

    @classmethod
    def allocate(
        cls, num_layers: int, num_blocks: int, num_kv_heads: int, block_size: int, head_dim: int,
        dtype: torch.dtype, device: torch.device,
    ) -> KVCache:  # fmt: skip
        return cls(
            torch.zeros(
                num_layers,
                num_blocks,
                num_kv_heads,
                2,
                block_size,
                head_dim,
                dtype=dtype,
                device=device,
            )
        )

    @property
    def num_blocks(self) -> int:
        return self.pool.shape[1]

    @property
    def block_size(self) -> int:
        return self.pool.shape[4]

    def k_cache(self, layer: int) -> torch.Tensor:
        return self.pool[layer, :, :, 0].transpose(1, 2)

    def v_cache(self, layer: int) -> torch.Tensor:
        return self.pool[layer, :, :, 1].transpose(1, 2)
