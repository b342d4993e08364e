"""The device's KV pool: one tensor, viewed per layer. Which block belongs to whom is the
scheduler's business.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from seesaw.layout.kv import PIECE_TOKENS


@dataclass(slots=True)
class KVCache:
    """One pool `[layer][block][kv_head][k|v][block_size][head_dim]`, contiguous.

    Ops take `k_cache(layer)` and `v_cache(layer)`: views `[num_blocks, block_size, num_kv_heads,
    head_dim]` with the last dim contiguous and any other strides, so that another engine's pool
    fits as well. With `panels` the numbers of a (layer, block, head, K or V) stand in the order of
    csrc/cpu/kv_view.h, and only ops that are told so may read them.
    """

    pool: torch.Tensor
    panels: bool = False

    @classmethod
    def allocate(
        cls, num_layers: int, num_blocks: int, num_kv_heads: int, block_size: int, head_dim: int,
        dtype: torch.dtype, device: torch.device, panels: bool = False,
    ) -> KVCache:  # fmt: skip
        """A pool of zeros. On the CPU its pages are taken from the machine as blocks are used,
        large ones where there are such: attention reads tiles from all over the pool."""
        assert not (panels and block_size % PIECE_TOKENS), f"panels of {block_size} tokens"
        shape = (num_layers, num_blocks, num_kv_heads, 2, block_size, head_dim)
        if device.type != "cpu":
            return cls(torch.zeros(shape, dtype=dtype, device=device), panels)
        pages = mmap.mmap(
            -1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        )
        with contextlib.suppress(OSError):  # a kernel without huge pages: no loss but speed
            pages.madvise(mmap.MADV_HUGEPAGE)
        return cls(torch.frombuffer(pages, dtype=dtype).view(shape), panels)

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

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, (source, destination), over all layers and heads."""
        sources, destinations = zip(*pairs, strict=True)
        self.pool[:, list(destinations)] = self.pool[:, list(sources)]

    def poison(self, blocks: Sequence[int]) -> None:
        """Fill blocks with NaN, so that whoever reads them by mistake answers nonsense."""
        self.pool[:, list(blocks)] = math.nan
