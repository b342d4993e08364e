"""Every layout cuts every model without a gap, and replicates only KV heads."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seesaw.errors import ConfigError
from seesaw.families.spec import LayerSpec, ModelSpec, RopeSpec
from seesaw.layout import ParallelLayout, Range, rank_ranges
from seesaw.layout.ranges import split, split_tiles
from tests.layout.models import with_any_stages


def make_spec(
    *, layers: int = 4, query_heads: int = 8, kv_heads: int = 4, mlp: int = 96, vocab: int = 320,
    experts: int = 0, num_plain: int = 0,
) -> ModelSpec:  # fmt: skip
    """With `experts` all layers but the last `num_plain` are sparse."""
    rope = RopeSpec(theta=10000.0)
    num_plain = num_plain if experts else layers
    return ModelSpec(
        family="llama",
        architecture="LlamaForCausalLM",
        hidden_size=query_heads * 8,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=query_heads,
        num_key_value_heads=kv_heads,
        head_dim=8,
        vocab_size=vocab,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        torch_dtype="float32",
        layers=tuple(LayerSpec(None, rope, sparse=i < layers - num_plain) for i in range(layers)),
        num_experts=experts,
    )


@st.composite
def models_and_layouts(draw: st.DrawFn) -> tuple[ModelSpec, ParallelLayout]:
    kv_heads = draw(st.integers(1, 9))
    query_heads = kv_heads * draw(st.integers(1, 8))
    layers = draw(st.integers(1, 40))
    experts = draw(st.sampled_from([0, 1, 3, 8, 60]))
    spec = make_spec(
        layers=layers,
        experts=experts,
        num_plain=draw(st.integers(0, layers - 1)),
        query_heads=query_heads,
        kv_heads=kv_heads,
        mlp=draw(st.integers(query_heads, 400)),
        vocab=draw(st.integers(query_heads, 400)),
    )
    layout = ParallelLayout(
        dp=draw(st.integers(1, 3)),
        tp=draw(st.integers(1, min(query_heads, experts or query_heads))),
        pp=draw(st.integers(1, spec.num_hidden_layers)),
    )
    return spec, draw(with_any_stages(st.just(layout), layers))


def assert_partition(ranges: list[Range], total: int) -> None:
    """The ranges, in rank order, cover 0 .. total once, in order, none of them empty."""
    assert ranges[0].start == 0
    assert ranges[-1].stop == total
    assert all(left.stop == right.start for left, right in itertools.pairwise(ranges))
    assert all(part.size > 0 for part in ranges)


@given(models_and_layouts())
def test_ranks_cover_the_model(case: tuple[ModelSpec, ParallelLayout]) -> None:
    spec, layout = case
    by_place = {
        layout.coordinates(rank): rank_ranges(layout, spec, rank)
        for rank in range(layout.num_ranks)
    }
    for at, ranges in by_place.items():
        assert ranges == by_place[at._replace(dp=0)]
        assert ranges.layers == by_place[at._replace(tp=0)].layers
        assert ranges.query_heads == by_place[at._replace(pp=0)].query_heads
    first = [ranges for at, ranges in by_place.items() if at.dp == 0 and at.pp == 0]
    assert_partition([ranges.query_heads for ranges in first], spec.num_attention_heads)
    for parts, total in (
        ([ranges.mlp for ranges in first], spec.intermediate_size * (spec.num_plain_layers > 0)),
        ([ranges.experts for ranges in first], spec.num_experts),
    ):
        if total:
            assert_partition(parts, total)
        else:
            assert set(parts) == {Range(0, 0)}
    assert_partition([ranges.vocab for ranges in first], spec.vocab_size)
    stages = [ranges for at, ranges in by_place.items() if at.dp == 0 and at.tp == 0]
    assert_partition([ranges.layers for ranges in stages], spec.num_hidden_layers)
    if layout.stages:
        assert tuple(ranges.layers.size for ranges in stages) == layout.stages


@given(models_and_layouts())
def test_query_heads_find_their_kv_head_on_the_rank(
    case: tuple[ModelSpec, ParallelLayout],
) -> None:
    spec, layout = case
    group = spec.num_attention_heads // spec.num_key_value_heads
    copies = [0] * spec.num_key_value_heads
    for tp_rank in range(layout.tp):
        ranges = rank_ranges(layout, spec, tp_rank)
        needed = {head // group for head in range(*ranges.query_heads)}
        assert needed == set(range(*ranges.kv_heads))
        for head in needed:
            copies[head] += 1
    assert max(copies) - min(copies) <= 1
    if layout.tp <= spec.num_key_value_heads:
        assert set(copies) == {1}


@given(st.integers(1, 300), st.data())
def test_split_is_balanced(total: int, data: st.DataObject) -> None:
    parts = data.draw(st.integers(1, total))
    ranges = [split(total, parts, index) for index in range(parts)]
    assert_partition(ranges, total)
    sizes = [part.size for part in ranges]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@given(st.integers(1, 300), st.integers(1, 40), st.data())
def test_tiles_stay_whole_where_there_are_enough(
    total: int, tile: int, data: st.DataObject
) -> None:
    parts = data.draw(st.integers(1, total))
    ranges = [split_tiles(total, tile, parts, index) for index in range(parts)]
    assert_partition(ranges, total)
    tiles = -(-total // tile)
    if tiles < parts:
        assert ranges == [split(total, parts, index) for index in range(parts)]
        return
    counts = [-(-part.size // tile) for part in ranges]
    assert all(part.start % tile == 0 for part in ranges)
    assert sum(counts) == tiles
    assert max(counts) - min(counts) <= 1


@given(*[st.integers(0, 30)] * 4)
def test_overlap_is_the_intersection(a: int, b: int, c: int, d: int) -> None:
    left, right = Range(min(a, b), max(a, b)), Range(min(c, d), max(c, d))
    assert set(range(*left.overlap(right))) == set(range(*left)) & set(range(*right))
    assert left.overlap(right).size == right.overlap(left).size >= 0


def test_nine_query_and_three_kv_heads_on_two_ranks() -> None:
    spec = make_spec(layers=30, query_heads=9, kv_heads=3, mlp=1536, vocab=49152)
    layout = ParallelLayout(tp=2)
    first, second = (rank_ranges(layout, spec, rank) for rank in range(2))
    assert (first.kv_heads, first.query_heads) == ((0, 2), (0, 6))
    assert (second.kv_heads, second.query_heads) == ((2, 3), (6, 9))
    assert (first.mlp, second.vocab) == ((0, 768), (24576, 49152))


def test_more_ranks_than_kv_heads_replicate_them() -> None:
    spec = make_spec(query_heads=8, kv_heads=2)
    layout = ParallelLayout(tp=3)
    held = [rank_ranges(layout, spec, rank) for rank in range(3)]
    assert [ranges.kv_heads for ranges in held] == [(0, 1), (0, 1), (1, 2)]
    assert [ranges.query_heads for ranges in held] == [(0, 2), (2, 4), (4, 8)]


def test_thirty_layers_in_four_stages_are_uneven() -> None:
    spec = make_spec(layers=30)
    layout = ParallelLayout(pp=4)
    sizes = [rank_ranges(layout, spec, rank).layers.size for rank in range(4)]
    assert sizes == [8, 8, 7, 7]


def test_experts_stay_whole() -> None:
    spec = make_spec(experts=8)
    held = [rank_ranges(ParallelLayout(tp=3), spec, rank).experts for rank in range(3)]
    assert held == [(0, 3), (3, 6), (6, 8)]
    with pytest.raises(ConfigError) as caught:
        rank_ranges(ParallelLayout(tp=6), make_spec(experts=5), 0)
    assert "8 query heads and 5 experts" in str(caught.value)
    assert "Use tp5 or less" in str(caught.value)


def test_columns_limit_plain_layers_only() -> None:
    assert rank_ranges(ParallelLayout(tp=8), make_spec(mlp=7, experts=8), 7).mlp == (0, 0)
    with pytest.raises(ConfigError, match="can be cut 7 ways"):
        rank_ranges(ParallelLayout(tp=8), make_spec(mlp=7, experts=8, num_plain=1), 0)


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        (ParallelLayout(tp=9), "with 8 query heads can be cut 8 ways"),
        (ParallelLayout(pp=5), "4 layers make 4 stages at most, got pp=5"),
        (
            ParallelLayout(pp=3, stages=(2, 2, 1)),
            "its stages have 5 layers, LlamaForCausalLM has 4. Give each layer to one stage, such "
            "as pp2+1+1.",
        ),
    ],
)
def test_layouts_that_leave_a_rank_empty_are_refused(layout: ParallelLayout, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rank_ranges(layout, make_spec(), 0)
    assert says in str(caught.value)
