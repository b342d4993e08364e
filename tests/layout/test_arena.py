"""Addresses in an arena: tensors of a layout lie apart, and the arena is no larger than said."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seesaw.families.spec import ModelSpec
from seesaw.layout import ArenaPlan, ParallelLayout, PlainFormat, RankRanges, plan_arena
from seesaw.layout.format import StoredParam, WeightFormat
from tests.layout.models import (
    FormatCase,
    all_ranges,
    formats_and_pairs,
    make_model,
    models_and_pairs,
)


def aligned(size: int) -> int:
    return (size + 63) // 64 * 64


def moves(param: StoredParam) -> bool:
    return param.layer is not None and param.cut != "none"


def size_on(fmt: WeightFormat, param: StoredParam, ranges: RankRanges) -> int:
    return sum(run.size for run in fmt.runs(param, ranges))


def shard_bytes(fmt: WeightFormat, ranges: RankRanges) -> int:
    return sum(aligned(size_on(fmt, param, ranges)) for param in fmt.params if moves(param))


def layer_bytes(fmt: WeightFormat) -> int:
    layers = {param.layer for param in fmt.params} - {None}
    return max(
        sum(aligned(fmt.nbytes(param)) for param in fmt.params if param.layer == layer)
        for layer in layers
    )


def resident_bytes(plan: ArenaPlan) -> int:
    return sum(aligned(found.run.size) for found in plan.residents)


def assert_disjoint(intervals: Sequence[tuple[int, int]], nbytes: int) -> None:
    """Each of at least one byte, none over another, all within 0 .. nbytes."""
    ordered = sorted(intervals)
    assert all(start < stop for start, stop in ordered)
    assert all(left[1] <= right[0] for left, right in itertools.pairwise(ordered))
    assert not ordered or (ordered[0][0] >= 0 and ordered[-1][1] <= nbytes)


@given(formats_and_pairs(), st.sampled_from([2, 4]))
def test_every_tensor_has_its_place_and_the_arena_its_bound(
    case: FormatCase, element_bytes: int
) -> None:
    kind, spec, *pair = case
    fmt = kind(spec, element_bytes)
    layouts = [all_ranges(layout, spec) for layout in pair]
    for rank in range(pair[0].num_ranks):
        plan = plan_arena(fmt, layouts, rank)
        assert plan == plan_arena(fmt, layouts, rank)
        for side, ranges in enumerate(layouts):
            held = {p.name: p for p in fmt.params if fmt.holds(p, ranges[rank])}
            assert plan.offsets[side].keys() == held.keys()
            assert_disjoint(
                [
                    (start, start + size_on(fmt, held[name], ranges[rank]))
                    for name, start in plan.offsets[side].items()
                ],
                plan.nbytes,
            )
            for name, start in plan.offsets[side].items():
                assert start % (16 if moves(held[name]) else element_bytes) == 0
        shards = [shard_bytes(fmt, ranges[rank]) for ranges in layouts]
        assert plan.nbytes <= resident_bytes(plan) + max(shards) + layer_bytes(fmt)


@given(formats_and_pairs())
def test_what_stays_has_one_address_for_both_layouts_and_none_that_moves_reaches_it(
    case: FormatCase,
) -> None:
    kind, spec, *pair = case
    fmt = kind(spec, 2)
    params = {param.name: param for param in fmt.params}
    layouts = [all_ranges(layout, spec) for layout in pair]
    for rank in range(pair[0].num_ranks):
        plan = plan_arena(fmt, layouts, rank)
        places = {found.param: found for found in plan.residents}
        needed = {
            param.name
            for param in fmt.params
            for ranges in layouts
            if not moves(param) and fmt.holds(param, ranges[rank])
        }
        assert places.keys() == needed
        end = resident_bytes(plan)
        for side, ranges in enumerate(layouts):
            for name, start in plan.offsets[side].items():
                if moves(params[name]):
                    assert start >= end
                    continue
                (run,) = fmt.runs(params[name], ranges[rank])
                place = places[name]
                assert place.run.start <= run.start
                assert run.start + run.size <= place.run.start + place.run.size
                assert start - place.offset == run.start - place.run.start
        for found in plan.residents:
            runs = [
                run for ranges in layouts for run in fmt.runs(params[found.param], ranges[rank])
            ]
            assert found.run.start == min(run.start for run in runs)
            assert found.run.start + found.run.size == max(run.start + run.size for run in runs)


@given(models_and_pairs())
def test_one_layout_takes_its_shard_and_no_more(
    case: tuple[ModelSpec, ParallelLayout, ParallelLayout],
) -> None:
    spec, layout, _ = case
    fmt = PlainFormat(spec, 4)
    ranges = all_ranges(layout, spec)
    for rank, held in enumerate(ranges):
        plan = plan_arena(fmt, [ranges], rank)
        assert plan.nbytes == resident_bytes(plan) + shard_bytes(fmt, held)
        twice = plan_arena(fmt, [ranges, ranges], rank)
        assert twice.nbytes == plan.nbytes
        assert twice.offsets[0] == twice.offsets[1]


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("flip", [False, True])
def test_even_shards_take_turns_without_extra_room(ranks: int, flip: bool) -> None:
    spec = make_model(layers=16, query_heads=16, kv_heads=8, mlp=128, hidden=64)
    fmt = PlainFormat(spec, 2)
    pair = [ParallelLayout(pp=ranks), ParallelLayout(tp=ranks)]
    layouts = [all_ranges(layout, spec) for layout in (reversed(pair) if flip else pair)]
    for rank in range(ranks):
        plan = plan_arena(fmt, layouts, rank)
        shard = shard_bytes(fmt, layouts[0][rank])
        assert shard == shard_bytes(fmt, layouts[1][rank])
        assert plan.nbytes == resident_bytes(plan) + shard


def test_more_layouts_than_two_are_refused() -> None:
    spec = make_model()
    ranges = all_ranges(ParallelLayout(), spec)
    with pytest.raises(ValueError, match="one layout or two, got 3"):
        plan_arena(PlainFormat(spec, 2), [ranges] * 3, 0)
