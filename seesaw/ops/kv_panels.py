"""The order of elements in a KV tile in panels (csrc/cpu/kv_view.h), to and from plain tokens.

For tests and for whoever looks into a pool; the engine writes and reads panels in C++ and never
turns them round.
"""

from __future__ import annotations

import torch

from seesaw.layout.kv import PIECE_TOKENS

# Shape letters: C tokens of a tile, D head_dim. `depth`: tokens or dims that stand side by side, as
# one multiply-add takes them in: 2 in bfloat16, 1 in float32.


def k_to_panels(tile_CD: torch.Tensor) -> torch.Tensor:
    """Plain tiles of K `[..., C, D]` in the order of panels, same shape, contiguous."""
    num_pieces, depth = _sizes(tile_CD)
    size = tile_CD.shape[-1]
    pairs = tile_CD.reshape(*tile_CD.shape[:-2], num_pieces, PIECE_TOKENS, size // depth, depth)
    return pairs.transpose(-3, -2).reshape(tile_CD.shape).contiguous()


def k_from_panels(tile_CD: torch.Tensor) -> torch.Tensor:
    """The way back from `k_to_panels`, contiguous."""
    num_pieces, depth = _sizes(tile_CD)
    size = tile_CD.shape[-1]
    pairs = tile_CD.reshape(*tile_CD.shape[:-2], num_pieces, size // depth, PIECE_TOKENS, depth)
    return pairs.transpose(-3, -2).reshape(tile_CD.shape).contiguous()


def v_to_panels(tile_CD: torch.Tensor) -> torch.Tensor:
    """Plain tiles of V `[..., C, D]` in the order of panels, same shape, contiguous."""
    _, depth = _sizes(tile_CD)
    tokens, size = tile_CD.shape[-2:]
    pairs = tile_CD.reshape(*tile_CD.shape[:-2], tokens // depth, depth, size)
    return pairs.transpose(-2, -1).reshape(tile_CD.shape).contiguous()


def v_from_panels(tile_CD: torch.Tensor) -> torch.Tensor:
    """The way back from `v_to_panels`, contiguous."""
    _, depth = _sizes(tile_CD)
    tokens, size = tile_CD.shape[-2:]
    pairs = tile_CD.reshape(*tile_CD.shape[:-2], tokens // depth, size, depth)
    return pairs.transpose(-2, -1).reshape(tile_CD.shape).contiguous()


def _sizes(tile_CD: torch.Tensor) -> tuple[int, int]:
    """Pieces of a tile, and depth. Raises ValueError for tiles that have no form in panels."""
    tokens, size = tile_CD.shape[-2:]
    depth = 4 // tile_CD.itemsize
    if depth not in (1, 2) or tokens % PIECE_TOKENS or size % depth:
        raise ValueError(
            f"panels hold 2 or 4 byte elements of 32 tokens each and an even head_dim, got "
            f"{tile_CD.dtype} {list(tile_CD.shape)}"
        )
    return tokens // PIECE_TOKENS, depth
