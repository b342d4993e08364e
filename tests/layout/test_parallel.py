"""The text form of a layout and the numbering of its ranks."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seesaw.errors import ConfigError
from seesaw.layout import ParallelLayout

sizes = st.integers(1, 12)
stages = st.lists(st.integers(1, 99), min_size=2, max_size=9).map(tuple)
layouts = st.builds(ParallelLayout, sizes, sizes, sizes) | st.builds(
    lambda dp, tp, stages: ParallelLayout(dp, tp, len(stages), stages), sizes, sizes, stages
)


@given(layouts)
def test_every_order_of_the_axes_reads_as_the_same_layout(layout: ParallelLayout) -> None:
    for parts in itertools.permutations(str(layout).split("-")):
        assert ParallelLayout.parse("-".join(parts)) == layout
    assert ParallelLayout.parse(layout.short) == layout


@given(layouts)
def test_ranks_and_coordinates_are_one_to_one(layout: ParallelLayout) -> None:
    seen = [layout.coordinates(rank) for rank in range(layout.num_ranks)]
    assert len(set(seen)) == layout.dp * layout.tp * layout.pp
    assert [layout.rank_of(at) for at in seen] == list(range(layout.num_ranks))


def test_canonical_text() -> None:
    assert str(ParallelLayout.parse("pp2-tp4")) == "dp1-tp4-pp2"
    assert ParallelLayout.parse(" TP2 ") == ParallelLayout(tp=2)
    uneven = ParallelLayout.parse("pp7+5-dp2")
    assert uneven == ParallelLayout(dp=2, pp=2, stages=(7, 5))
    assert (str(uneven), uneven.short) == ("dp2-tp1-pp7+5", "dp2-pp7+5")
    assert uneven != ParallelLayout.parse("dp2-pp2")
    assert str(uneven.replica) == "dp1-tp1-pp7+5"


def test_ranks_that_share_a_layer_are_neighbours() -> None:
    layout = ParallelLayout.parse("dp2-tp2-pp2")
    assert [tuple(layout.coordinates(rank)) for rank in range(4)] == [
        (0, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (0, 1, 1),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot read ''"),
        ("tp", "cannot read 'tp'"),
        ("tp2,pp2", "cannot read 'tp2,pp2'"),
        ("tp2-ep4", "cannot read 'ep4'"),
        ("tp-2", "cannot read 'tp'"),
        ("tp2-tp2", "tp is given twice"),
        ("tp0", "tp=0: expected an integer from 1"),
        ("tp²", "cannot read"),
        ("tp7+5", "cannot read 'tp7+5'"),
        ("pp7+", "cannot read 'pp7+'"),
        ("pp7+0", "layers 7+0 of 2 stages: expected the layers of each stage, at least 1"),
        ("pp7+5-pp2", "pp is given twice"),
    ],
)
def test_bad_text_is_refused_with_its_reason(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match="layout") as caught:
        ParallelLayout.parse(text)
    assert says in str(caught.value)


def test_a_rank_outside_the_layout_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected 0 to 3"):
        ParallelLayout(tp=4).coordinates(4)
