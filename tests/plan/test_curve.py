"""Curves go through their points, between them and no further."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seesaw.errors import ConfigError
from seesaw.plan.curve import Curve

positive = st.floats(1e-9, 1e12)
points = st.lists(
    st.tuples(positive, positive), min_size=1, max_size=6, unique_by=lambda point: point[0]
).map(sorted)


@given(points)
def test_points_lie_on_the_curve(pairs: list[tuple[float, float]]) -> None:
    curve = Curve.of(pairs, "rate")
    for x, y in pairs:
        assert curve(x) == pytest.approx(y)


@given(points, positive)
def test_nothing_is_beyond_the_points(pairs: list[tuple[float, float]], x: float) -> None:
    curve = Curve.of(pairs, "rate")
    if x <= pairs[0][0]:
        assert curve(x) == pairs[0][1]
    elif x >= pairs[-1][0]:
        assert curve(x) == pytest.approx(pairs[-1][1])
    else:
        around = next((a, b) for a, b in pairwise(pairs) if a[0] <= x <= b[0])
        low, high = sorted(y for _, y in around)
        assert low * (1 - 1e-9) <= curve(x) <= high * (1 + 1e-9)


@given(st.floats(-2, 2), st.floats(0.1, 100), st.floats(1.5, 50), st.floats(0, 1))
def test_powers_are_met_exactly(power: float, x: float, factor: float, share: float) -> None:
    curve = Curve.of([(x, 3 * x**power), (x * factor, 3 * (x * factor) ** power)], "rate")
    between = x * factor**share
    assert curve(between) == pytest.approx(3 * between**power)


@given(positive, positive)
def test_flat_is_flat(y: float, x: float) -> None:
    assert Curve.flat(y)(x) == y
    assert Curve.flat(math.inf)(x) == math.inf


@pytest.mark.parametrize(
    "pairs",
    [
        [],
        [[1, 2], [1, 3]],
        [[2, 1], [1, 1]],
        [[0, 1]],
        [[-1, 1]],
        [[1, 0]],
        [[1, -2]],
        [[1, 2, 3]],
        [[1]],
    ],
)
def test_what_is_no_curve_is_refused_by_name(pairs: list[list[float]]) -> None:
    with pytest.raises(ConfigError, match=r"matmul_flops=.*rising"):
        Curve.of(pairs, "matmul_flops")
