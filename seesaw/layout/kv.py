"""How KV lies as bytes in the host tier and in a device pool, and what one store or load copies.

Owns every stride and byte count of both, in one place, and the checks that no copy leaves them.
Standard library only; who copies, and when, is the business of `kvcache`. Strides and sizes in
bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from seesaw.errors import ConfigError
from seesaw.families.spec import ModelSpec
from seesaw.layout.parallel import ParallelLayout
from seesaw.layout.ranges import Range, rank_ranges

PIECE_TOKENS = 32
"""Tokens of the pieces that a block of a pool in panels is made of (csrc/cpu/kv_view.h)."""


@dataclass(frozen=True, slots=True)
class TierShape:
    """The host tier `[block][kv_head][layer][k|v][block_tokens][head_dim]`: all layers and KV heads
    of the model, so that each layout's ranks write and read slices of it."""

    num_blocks: int
    num_kv_heads: int
    num_layers: int
    block_tokens: int
    head_dim: int
    element_bytes: int

    @classmethod
    def of(cls, spec: ModelSpec, num_blocks: int, block_tokens: int, element_bytes: int) -> Self:
        """The tier of a model."""
        heads, layers = spec.num_key_value_heads, spec.num_hidden_layers
        return cls(num_blocks, heads, layers, block_tokens, spec.head_dim, element_bytes)

    @property
    def kv_stride(self) -> int:
        """From K to V of one (block, head, layer)."""
        return self.block_tokens * self.head_dim * self.element_bytes

    @property
    def layer_stride(self) -> int:
        return 2 * self.kv_stride

    @property
    def head_stride(self) -> int:
        return self.num_layers * self.layer_stride

    @property
    def block_bytes(self) -> int:
        return self.num_kv_heads * self.head_stride

    @property
    def nbytes(self) -> int:
        return self.num_blocks * self.block_bytes


@dataclass(frozen=True, slots=True)
class PoolShape:
    """One rank's device pool `[layer][block][kv_head][k|v][block_size][head_dim]`, of the model's
    layers and KV heads in the ranges. A tile is the block_size x head_dim elements of one (layer,
    block, head, K or V): the unit of copying."""

    layers: Range
    kv_heads: Range
    num_blocks: int
    block_size: int
    head_dim: int
    element_bytes: int

    @property
    def tile_bytes(self) -> int:
        return self.block_size * self.head_dim * self.element_bytes

    @property
    def head_stride(self) -> int:
        return 2 * self.tile_bytes

    @property
    def block_stride(self) -> int:
        return self.kv_heads.size * self.head_stride

    @property
    def layer_stride(self) -> int:
        return self.num_blocks * self.block_stride

    @property
    def nbytes(self) -> int:
        return self.layers.size * self.layer_stride


def check_tier_blocks(tier_block_tokens: int, block_size: int) -> None:
    """Raises ConfigError where a tier block is not a whole number of device blocks."""
    if tier_block_tokens < 1 or tier_block_tokens % block_size:
        nearest = max(1, round(tier_block_tokens / block_size)) * block_size
        raise ConfigError(
            f"tier_block_size={tier_block_tokens}: expected a multiple of block_size="
            f"{block_size}, since the host tier holds whole blocks. Use {nearest}."
        )


def owned_heads(layout: ParallelLayout, spec: ModelSpec, rank: int) -> Range:
    """KV heads that `rank` stores: those it holds, except that of the ranks which share a
    replicated head only the lowest stores it. Of size 0 on the others."""
    held = rank_ranges(layout, spec, rank).kv_heads
    at = layout.coordinates(rank)
    if at.tp and rank_ranges(layout, spec, rank - 1).kv_heads == held:
        return Range(held.start, held.start)
    return held


def transfer_bytes(pool: PoolShape, num_tokens: int, num_heads: int | None = None) -> int:
    """Bytes that a rank copies to store or load the first `num_tokens` positions of a request:
    whole device blocks of its layers and of `num_heads` KV heads. None = all of the pool's; a store
    where heads are replicated counts `owned_heads` only."""
    heads = pool.kv_heads.size if num_heads is None else num_heads
    num_blocks = -(-num_tokens // pool.block_size)
    return num_blocks * pool.layers.size * heads * 2 * pool.tile_bytes


@dataclass(frozen=True, slots=True)
class KVCopy:
    """The first `num_tokens` positions of one request, between blocks of a device pool and of the
    tier, both in order of position: all layers of the pool, KV heads `heads` of those it has."""

    tier: TierShape
    pool: PoolShape
    heads: Range
    blocks: Sequence[int]
    tier_blocks: Sequence[int]
    num_tokens: int

    @property
    def num_bytes(self) -> int:
        return transfer_bytes(self.pool, self.num_tokens, self.heads.size)

    def check(self) -> None:
        """Raises ValueError, naming what is wrong, where the copy would leave pool or tier, write
        one place twice, or leave positions out. A copy that passes touches nothing else."""
        tier, pool = self.tier, self.pool
        for name in ("head_dim", "element_bytes"):
            _expect(name, getattr(pool, name), getattr(tier, name))
        if tier.block_tokens % pool.block_size:
            raise ValueError(
                f"blocks of {pool.block_size} tokens do not divide tier blocks of "
                f"{tier.block_tokens}"
            )
        _expect_within("layers of the pool", pool.layers, Range(0, tier.num_layers))
        _expect_within("KV heads of the pool", pool.kv_heads, Range(0, tier.num_kv_heads))
        if self.heads.size:
            _expect_within("KV heads to copy", self.heads, pool.kv_heads)
        if self.num_tokens < 0:
            raise ValueError(f"num_tokens={self.num_tokens}: expected 0 or more")
        _expect("blocks", len(self.blocks), -(-self.num_tokens // pool.block_size))
        _expect("tier blocks", len(self.tier_blocks), -(-self.num_tokens // tier.block_tokens))
        _expect_blocks("blocks", self.blocks, pool.num_blocks)
        _expect_blocks("tier blocks", self.tier_blocks, tier.num_blocks)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Tiles of one device block: heads x layers x (k, v)."""
        return (self.heads.size, self.pool.layers.size, 2)

    @property
    def pool_strides(self) -> tuple[int, int, int]:
        """Of `counts`, in the pool."""
        return (self.pool.head_stride, self.pool.layer_stride, self.pool.tile_bytes)

    @property
    def tier_strides(self) -> tuple[int, int, int]:
        """Of `counts`, in the tier."""
        return (self.tier.head_stride, self.tier.layer_stride, self.tier.kv_stride)

    def pool_offsets(self) -> list[int]:
        """Where the first tile of each device block lies in the pool."""
        first = (self.heads.start - self.pool.kv_heads.start) * self.pool.head_stride
        return [block * self.pool.block_stride + first for block in self.blocks]

    def tier_offsets(self) -> list[int]:
        """Where the first tile of each device block lies in the tier."""
        tier, pool = self.tier, self.pool
        first = self.heads.start * tier.head_stride + pool.layers.start * tier.layer_stride
        per_block = tier.block_tokens // pool.block_size
        return [
            self.tier_blocks[index // per_block] * tier.block_bytes
            + (index % per_block) * pool.tile_bytes
            + first
            for index in range(len(self.blocks))
        ]


def _expect(what: str, got: int, expected: int) -> None:
    if got != expected:
        raise ValueError(f"{what}: got {got}, expected {expected}")


def _expect_within(what: str, got: Range, bounds: Range) -> None:
    if not bounds.start <= got.start < got.stop <= bounds.stop:
        raise ValueError(f"{what}: got {got}, expected a part of {bounds}")


def _expect_blocks(what: str, blocks: Sequence[int], num_blocks: int) -> None:
    if blocks and not 0 <= min(blocks) <= max(blocks) < num_blocks:
        raise ValueError(
            f"{what}: got {min(blocks)} to {max(blocks)}, expected 0 to {num_blocks - 1}"
        )
    if len(set(blocks)) != len(blocks):
        raise ValueError(f"{what}: one is named twice: {list(blocks)}")
