"""How KV lies as bytes in the host tier and in a device pool, and what one store or load copies.

Owns every stride and byte count of both, in one place, and the checks that no copy leaves them.
Standard library only; who copies, and when, is the business of `kvcache`. Strides and sizes in
bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Self

from seesaw.errors import ConfigError
from seesaw.families.spec import ModelSpec
from seesaw.layout.parallel import ParallelLayout
from seesaw.layout.ranges import Range, rank_ranges

PIECE_TOKENS = 32
"""Tokens of the pieces that a block of a pool in panels is made of (csrc/cpu/kv_view.h)."""

STORE_LAYERS = 4
"""Layers whose KV is stored at once while those behind them run. Each copy that is begun costs the
computing thread tens of microseconds, and what is begun after the last layer is not hidden: a part
of so many layers is little of both in models of 12 layers and more."""

TierOrder = Literal["head", "layer", "token"]
"""What changes slowest within a tier block."""


@dataclass(frozen=True, slots=True)
class TierShape:
    """The host tier: all layers and KV heads of the model, so that each layout's ranks write and
    read slices of it. By `order`

    - head: `[block][kv_head][layer][k|v][block_tokens][head_dim]`
    - layer: `[block][layer][kv_head][k|v][block_tokens][head_dim]`
    - token: `[block][part][layer][kv_head][k|v][part_tokens][head_dim]`, a part being the
      `part_tokens` of a device block: tiles stay whole, in panels too.
    """

    num_blocks: int
    num_kv_heads: int
    num_layers: int
    block_tokens: int
    head_dim: int
    element_bytes: int
    order: TierOrder = "head"
    part_tokens: int = 0
    """Of use to order "token" alone: tokens of a device block."""

    @classmethod
    def of(
        cls, spec: ModelSpec, num_blocks: int, block_tokens: int, element_bytes: int,
        order: TierOrder = "head", part_tokens: int = 0,
    ) -> Self:  # fmt: skip
        """The tier of a model."""
        heads, layers = spec.num_key_value_heads, spec.num_hidden_layers
        return cls(
            num_blocks, heads, layers, block_tokens, spec.head_dim, element_bytes, order,
            part_tokens,
        )  # fmt: skip

    @property
    def run_tokens(self) -> int:
        """Tokens of one (head, layer, K or V) that stand together."""
        return self.part_tokens if self.order == "token" else self.block_tokens

    @property
    def parts(self) -> int:
        """Of a tier block: 1 but in order "token"."""
        return self.block_tokens // self.run_tokens

    @property
    def kv_stride(self) -> int:
        """From K to V of one (part, head, layer)."""
        return self.run_tokens * self.head_dim * self.element_bytes

    @property
    def layer_stride(self) -> int:
        return (1 if self.order == "head" else self.num_kv_heads) * 2 * self.kv_stride

    @property
    def head_stride(self) -> int:
        return (self.num_layers if self.order == "head" else 1) * 2 * self.kv_stride

    @property
    def part_stride(self) -> int:
        return self.num_kv_heads * self.num_layers * 2 * self.kv_stride

    @property
    def block_bytes(self) -> int:
        return self.parts * self.part_stride

    @property
    def nbytes(self) -> int:
        return self.num_blocks * self.block_bytes

    @property
    def view_shape(self) -> tuple[int, int, int, int, int, int]:
        """`[block and part][kv_head][layer][k|v][run_tokens][head_dim]`, whatever the order."""
        blocks = self.num_blocks * self.parts
        return blocks, self.num_kv_heads, self.num_layers, 2, self.run_tokens, self.head_dim

    @property
    def view_strides(self) -> tuple[int, int, int, int, int, int]:
        """Of `view_shape`, in elements."""
        strides = (self.part_stride, self.head_stride, self.layer_stride, self.kv_stride)
        part, head, layer, kv = (stride // self.element_bytes for stride in strides)
        return part, head, layer, kv, self.head_dim, 1

    def of_rank(self, num_blocks: int, heads: Range, layers: Range) -> Self:
        """As many tier blocks, with these heads and layers alone, in the same order."""
        return replace(self, num_blocks=num_blocks, num_kv_heads=heads.size, num_layers=layers.size)


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


class TierRun(NamedTuple):
    """`nbytes` bytes of a tier block at `tier`, and at `staged` of the same part set aside, which
    has a rank's heads and layers alone, in the tier's order."""

    staged: int
    tier: int
    nbytes: int


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
    tier, both in order of position: layers `part` (None = all) and KV heads `heads` of those that
    the pool has."""

    tier: TierShape
    pool: PoolShape
    heads: Range
    blocks: Sequence[int]
    tier_blocks: Sequence[int]
    num_tokens: int
    part: Range | None = None

    @property
    def layers(self) -> Range:
        return self.part or self.pool.layers

    @property
    def num_bytes(self) -> int:
        of_all = transfer_bytes(self.pool, self.num_tokens, self.heads.size)
        return of_all // self.pool.layers.size * self.layers.size

    def check(self) -> None:
        """Raises ValueError, naming what is wrong, where the copy would leave pool or tier, write
        one place twice, or leave positions out. A copy that passes touches nothing else."""
        tier, pool = self.tier, self.pool
        for name in ("head_dim", "element_bytes"):
            _expect(name, getattr(pool, name), getattr(tier, name))
        if tier.run_tokens % pool.block_size:
            raise ValueError(
                f"blocks of {pool.block_size} tokens do not divide tier blocks of {tier.run_tokens}"
            )
        _expect_within("layers of the pool", pool.layers, Range(0, tier.num_layers))
        _expect_within("KV heads of the pool", pool.kv_heads, Range(0, tier.num_kv_heads))
        _expect_within("layers to copy", self.layers, pool.layers)
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
        return (self.heads.size, self.layers.size, 2)

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
        pool = self.pool
        first = (self.heads.start - pool.kv_heads.start) * pool.head_stride
        first += (self.layers.start - pool.layers.start) * pool.layer_stride
        stride = pool.block_stride  # sums of products, and this is called while a step waits
        return [block * stride + first for block in self.blocks]

    def tier_offsets(self) -> list[int]:
        """Where the first tile of each device block lies in the tier."""
        tier, tile_bytes = self.tier, self.pool.tile_bytes
        per_block = tier.block_tokens // self.pool.block_size
        per_part = tier.run_tokens // self.pool.block_size
        within = [  # a tier block
            at // per_part * tier.part_stride + at % per_part * tile_bytes + self.tier_start
            for at in range(per_block)
        ]
        block_bytes = tier.block_bytes
        starts = [block * block_bytes for block in self.tier_blocks]
        offsets = [start + at for start in starts for at in within]
        return offsets[: len(self.blocks)]

    @property
    def tier_start(self) -> int:
        """Where the first tile lies within a tier block."""
        tier = self.tier
        return self.heads.start * tier.head_stride + self.layers.start * tier.layer_stride

    def runs(self, num_blocks: int) -> Iterator[TierRun]:
        """The longest runs of a tier block of which the first `num_blocks` device blocks are
        copied; all of them are equally long."""
        tier, size, heads, layers = self.tier, self.pool.block_size, self.heads, self.layers
        held = tier.of_rank(1, heads, layers)
        whole_heads, whole_layers = heads.size == tier.num_kv_heads, layers.size == tier.num_layers
        first = self.tier_start
        if tier.order == "head":
            outer, inner, whole = heads.size, layers.size, whole_layers
            strides = (held.head_stride, tier.head_stride, held.layer_stride, tier.layer_stride)
        else:
            outer, inner, whole = layers.size, heads.size, whole_heads
            strides = (held.layer_stride, tier.layer_stride, held.head_stride, tier.head_stride)
        aside_outer, tier_outer, aside_inner, tier_inner = strides
        if num_blocks * size < tier.run_tokens:
            for at in range(outer):
                for index in range(inner):
                    for kv in range(2):
                        yield TierRun(
                            at * aside_outer + index * aside_inner + kv * held.kv_stride,
                            first + at * tier_outer + index * tier_inner + kv * tier.kv_stride,
                            num_blocks * self.pool.tile_bytes,
                        )
            return
        parts = num_blocks * size // tier.run_tokens
        if whole and outer * aside_outer == tier.part_stride:
            yield TierRun(0, first, parts * tier.part_stride)
            return
        for part in range(parts):
            aside, there = part * held.part_stride, first + part * tier.part_stride
            if whole:
                yield TierRun(aside, there, outer * aside_outer)
                continue
            for at in range(outer):
                yield TierRun(aside + at * aside_outer, there + at * tier_outer, aside_outer)


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
