"""`layout.kv`: addresses agree with tensors of the same shapes, every head has one owner, and a
copy that would leave its memory is refused.
"""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seesaw.errors import ConfigError
from seesaw.layout import ParallelLayout, Range, rank_ranges
from seesaw.layout.kv import (
    KVCopy,
    PoolShape,
    TierOrder,
    TierShape,
    check_tier_blocks,
    owned_heads,
    transfer_bytes,
)
from tests.kvcache.kv_harness import make_spec
from tests.layout.models import with_any_stages

TIER = TierShape(
    num_blocks=5, num_kv_heads=4, num_layers=7, block_tokens=48, head_dim=3, element_bytes=2
)
POOL = PoolShape(
    layers=Range(2, 5), kv_heads=Range(1, 4), num_blocks=9, block_size=16, head_dim=3,
    element_bytes=2,
)  # fmt: skip
COPY = KVCopy(TIER, POOL, Range(2, 4), [8, 0, 3, 5], [4, 1], num_tokens=63)


def test_addresses_are_those_of_tensors() -> None:
    tier = torch.empty(5, 4, 7, 2, 48, 3, dtype=torch.int16)
    pool = torch.empty(3, 9, 3, 2, 16, 3, dtype=torch.int16)
    assert (TIER.nbytes, POOL.nbytes) == (tier.nbytes, pool.nbytes)
    assert TIER.block_bytes == tier[0].nbytes
    COPY.check()
    pool_offsets, tier_offsets = COPY.pool_offsets(), COPY.tier_offsets()
    assert COPY.counts == (2, 3, 2)
    for index, block in enumerate(COPY.blocks):
        for head in range(2):
            for layer in range(3):
                for kv in range(2):
                    tile = pool[layer, block, head + 1, kv]
                    at = pool_offsets[index] + dot((head, layer, kv), COPY.pool_strides)
                    assert at == 2 * tile.storage_offset()
                    side = tier[COPY.tier_blocks[index // 3], head + 2, layer + 2, kv]
                    at = tier_offsets[index] + dot((head, layer, kv), COPY.tier_strides)
                    assert at == 2 * side[index % 3 * 16].storage_offset()
    assert COPY.num_bytes == len(COPY.blocks) * 2 * 3 * 2 * POOL.tile_bytes
    assert POOL.tile_bytes == pool[0, 0, 0, 0].nbytes


@pytest.mark.parametrize("order", ["layer", "token"])
def test_other_orders_are_those_of_tensors(order: TierOrder) -> None:
    shape = dataclasses.replace(TIER, order=order, part_tokens=16)
    parts = 3 if order == "token" else 1
    tier = torch.empty(5, parts, 7, 4, 2, 48 // parts, 3, dtype=torch.int16)
    copy = dataclasses.replace(COPY, tier=shape)
    assert (shape.nbytes, shape.block_bytes) == (tier.nbytes, tier[0].nbytes)
    copy.check()
    for index, offset in enumerate(copy.tier_offsets()):
        for head, layer, kv in itertools.product(range(2), range(3), range(2)):
            part, token = divmod(index % 3 * 16, 48 // parts)
            tile = tier[copy.tier_blocks[index // 3], part, layer + 2, head + 2, kv, token:]
            assert offset + dot((head, layer, kv), copy.tier_strides) == 2 * tile.storage_offset()
    view = torch.empty(0, dtype=torch.int16).set_(tier.untyped_storage())
    view = view.as_strided(shape.view_shape, shape.view_strides)
    expected = tier.flatten(0, 1).transpose(1, 2)
    assert (view.shape, view.stride()) == (expected.shape, expected.stride())


@pytest.mark.parametrize(
    ("heads", "layers", "num_blocks", "expected"),
    [
        # a pipeline stage, a tensor-parallel rank, both, and half a tier block
        (Range(0, 4), Range(2, 5), 3, {"head": 4, "layer": 1, "token": 3}),
        (Range(1, 3), Range(0, 7), 3, {"head": 1, "layer": 7, "token": 21}),
        (Range(1, 3), Range(2, 5), 3, {"head": 2, "layer": 3, "token": 9}),
        (Range(0, 4), Range(0, 7), 3, {"head": 1, "layer": 1, "token": 1}),
        (Range(0, 4), Range(0, 7), 2, {"head": 56, "layer": 56, "token": 1}),
        (Range(1, 3), Range(2, 5), 2, {"head": 12, "layer": 12, "token": 6}),
    ],
)
def test_pieces_of_a_tier_block(
    heads: Range, layers: Range, num_blocks: int, expected: dict[TierOrder, int]
) -> None:
    pool = dataclasses.replace(POOL, layers=layers, kv_heads=heads)
    for order, count in expected.items():
        shape = dataclasses.replace(TIER, order=order, part_tokens=16)
        copy = dataclasses.replace(COPY, tier=shape, pool=pool, heads=heads)
        runs = list(copy.runs(num_blocks))
        assert len(runs) == count, order
        held = num_blocks * heads.size * layers.size * 2 * pool.tile_bytes
        assert sum(run.nbytes for run in runs) == held


def dot(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return sum(x * y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": [8, 0, 3, 9]}, r"blocks: got 0 to 9, expected 0 to 8"),
        ({"blocks": [8, 0, 3, -1]}, r"blocks: got -1 to 8"),
        ({"blocks": [8, 0, 3]}, r"blocks: got 3, expected 4"),
        ({"blocks": [8, 0, 3, 5, 6]}, r"blocks: got 5, expected 4"),
        ({"blocks": [8, 0, 3, 3]}, r"one is named twice"),
        ({"tier_blocks": [4, 5]}, r"tier blocks: got 4 to 5, expected 0 to 4"),
        ({"tier_blocks": [4, 4]}, r"tier blocks: one is named twice"),
        ({"tier_blocks": [4]}, r"tier blocks: got 1, expected 2"),
        ({"num_tokens": 65}, r"blocks: got 4, expected 5"),
        ({"num_tokens": 48}, r"blocks: got 4, expected 3"),
        ({"num_tokens": -1, "blocks": [], "tier_blocks": []}, r"num_tokens=-1"),
        ({"heads": Range(0, 2)}, r"KV heads to copy"),
        ({"heads": Range(3, 5)}, r"KV heads to copy"),
        ({"pool": dataclasses.replace(POOL, layers=Range(5, 8))}, r"layers of the pool"),
        ({"pool": dataclasses.replace(POOL, layers=Range(-1, 2))}, r"layers of the pool"),
        ({"pool": dataclasses.replace(POOL, kv_heads=Range(2, 5))}, r"KV heads of the pool"),
        ({"pool": dataclasses.replace(POOL, head_dim=4)}, r"head_dim: got 4, expected 3"),
        ({"pool": dataclasses.replace(POOL, element_bytes=4)}, r"element_bytes"),
        ({"pool": dataclasses.replace(POOL, block_size=32)}, r"do not divide"),
    ],
)
def test_a_copy_that_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    COPY.check()
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(COPY, **change).check()  # type: ignore[arg-type]


def test_a_rank_that_owns_nothing_passes_with_no_bytes() -> None:
    copy = dataclasses.replace(COPY, heads=Range(1, 1))
    copy.check()
    assert copy.num_bytes == 0


def test_no_token_is_no_block() -> None:
    copy = dataclasses.replace(COPY, blocks=[], tier_blocks=[], num_tokens=0)
    copy.check()
    assert (copy.num_bytes, copy.pool_offsets(), copy.tier_offsets()) == (0, [], [])


def test_copies_that_pass_stay_within_their_memory() -> None:
    """Corner blocks, heads and layers: the last byte of each tile lies inside."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    for _ in range(200):
        num_tokens = rng.randrange(1, 5 * 48)
        copy = dataclasses.replace(
            COPY,
            heads=rng.choice([Range(1, 4), Range(1, 2), Range(3, 4)]),
            blocks=rng.sample(range(9), min(9, -(-num_tokens // 16))),
            tier_blocks=rng.sample(range(5), -(-num_tokens // 48)),
            num_tokens=num_tokens,
        )
        if num_tokens > 9 * 16:
            with pytest.raises(ValueError, match="blocks"):
                copy.check()
            continue
        copy.check()
        last = tuple(count - 1 for count in copy.counts)
        for offsets, strides, nbytes in (
            (copy.pool_offsets(), copy.pool_strides, POOL.nbytes),
            (copy.tier_offsets(), copy.tier_strides, TIER.nbytes),
        ):
            assert min(offsets) >= 0, f"seed {seed}"
            assert max(offsets) + dot(last, strides) + POOL.tile_bytes <= nbytes, f"seed {seed}"


@given(
    kv_heads=st.integers(1, 9), group=st.integers(1, 8), layers=st.integers(1, 12), data=st.data()
)
def test_every_head_of_every_layer_has_one_owner(
    kv_heads: int, group: int, layers: int, data: st.DataObject
) -> None:
    spec = make_spec(layers, kv_heads * group, kv_heads)
    layout = ParallelLayout(
        dp=data.draw(st.integers(1, 2)),
        tp=data.draw(st.integers(1, kv_heads * group)),
        pp=data.draw(st.integers(1, layers)),
    )
    layout = data.draw(with_any_stages(st.just(layout), layers))
    owners: dict[tuple[int, int, int], int] = {}
    for rank in range(layout.num_ranks):
        held, owned = rank_ranges(layout, spec, rank), owned_heads(layout, spec, rank)
        assert held.kv_heads.overlap(owned) == owned
        for layer in range(*held.layers):
            for head in range(*owned):
                replica = layout.coordinates(rank).dp
                assert (replica, layer, head) not in owners
                owners[replica, layer, head] = rank
    assert len(owners) == layout.dp * layers * kv_heads
    # The lowest of those that hold it.
    for (replica, layer, head), rank in owners.items():
        for lower in range(rank):
            held = rank_ranges(layout, spec, lower)
            if layout.coordinates(lower).dp == replica and layer in range(*held.layers):
                assert head not in range(*held.kv_heads)


def test_bytes_are_whole_blocks_of_layers_and_heads() -> None:
    a_block = 3 * 3 * 2 * 16 * 3 * 2
    assert [transfer_bytes(POOL, n) for n in (0, 1, 16, 17)] == [0, a_block, a_block, 2 * a_block]
    assert transfer_bytes(POOL, 1, 2) == a_block * 2 // 3
    assert transfer_bytes(POOL, 1, 0) == 0


@pytest.mark.parametrize(("tier_block", "nearest"), [(24, 32), (0, 16), (-16, 16), (15, 16)])
def test_tier_blocks_are_whole_device_blocks(tier_block: int, nearest: int) -> None:
    for good in (16, 64, 256):
        check_tier_blocks(good, 16)
    with pytest.raises(ConfigError, match=f"multiple of block_size=16.*Use {nearest}"):
        check_tier_blocks(tier_block, 16)
