"""The text form of a layout and the numbering of its ranks."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seesaw.errors import ConfigError
from seesaw.layout import ParallelLayout

sizes = st.integers(1, 12)
layouts = st.builds(ParallelLayout, sizes, sizes, sizes)


@given(layouts)
def test_every_order_of_the_axes_reads_as_the_same_layout(layout: ParallelLayout) -> None:
    for parts in itertools.permutations(str(layout).split("-")):
        assert ParallelLayout.parse("-".join(parts)) == layout


@given(layouts)
def test_ranks_and_coordinates_are_one_to_one(layout: ParallelLayout) -> None:
    seen = [layout.coordinates(rank) for rank in range(layout.num_ranks)]
    assert len(set(seen)) == layout.dp * layout.tp * layout.pp
    assert [layout.rank_of(at) for at in seen] == list(range(layout.num_ranks))


def test_canonical_text() -> None:
    assert str(ParallelLayout.parse("pp2-tp4")) == "dp1-tp4-pp2"
    assert ParallelLayout.parse(" TP2 ") == ParallelLayout(tp=2)


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
    ],
)
def test_bad_text_is_refused_with_its_reason(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match="layout") as caught:
        ParallelLayout.parse(text)
    assert says in str(caught.value)


def test_a_rank_outside_the_layout_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected 0 to 3"):
        ParallelLayout(tp=4).coordinates(4)
