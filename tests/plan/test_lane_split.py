"""The search for a split is the greedy one of the paper and finds what trying all would, and a
split that hardly differs is not worth a switch."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest

from seesaw.plan.lane_split import SplitRule, most_units, settled, split

TABLES = 10_000


def falling(rng: random.Random, units: int) -> list[float]:
    """Seconds on 1, 2, ... units: never more on more of them, at times equal."""
    steps = [rng.choice((0.0, rng.random(), rng.expovariate(0.2))) for _ in range(units)]
    return [0.1 + sum(steps[count:]) for count in range(1, units + 1)]


def exhaustive(seconds: Sequence[float], units: int, slack: float) -> int:
    """The most that leave the other lane enough, or the least."""
    fits = [n for n in range(1, units) if seconds[units - n - 1] <= slack * seconds[units - 1]]
    return max(fits, default=1)


def greedy(seconds: Sequence[float], units: int, slack: float, begin: int) -> int:
    """The paper's two walks from the present split, by one unit."""
    limit = slack * seconds[units - 1]
    own = begin
    while seconds[units - own - 1] > limit and own > 1:
        own -= 1
    while own < units - 1 and seconds[units - own - 2] <= limit:
        own += 1
    return own


def test_it_finds_what_the_greedy_walk_and_trying_all_find() -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    for _ in range(TABLES):
        units, slack = rng.randint(2, 100), 1 + rng.random()
        seconds = falling(rng, units)
        asked: list[int] = []

        def slowed(count: int, seconds=seconds, asked=asked) -> float:
            asked.append(count)
            return seconds[count - 1]

        found = most_units(slowed, units, slack)
        assert found == exhaustive(seconds, units, slack), f"seed {seed}"
        begin = rng.randint(1, units - 1)
        assert found == greedy(seconds, units, slack, begin), f"seed {seed}"
        assert len(asked) <= 1 + math.ceil(math.log2(units)), f"seed {seed}: asked {asked}"


def test_whose_slowdown_is_bounded_depends_on_how_full_the_pool_is() -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    rule = SplitRule()
    kept = 0
    for _ in range(1000):
        units = rng.randint(2, 20)
        prefill, decode = falling(rng, units), falling(rng, units)
        for usage, bounded, slack in (
            (0.69, decode, rule.decode_slowdown),
            (0.7, prefill, rule.prefill_slowdown),
        ):
            own = split(
                rule, lambda n, t=prefill: t[n - 1], lambda n, t=decode: t[n - 1], units, usage
            )
            assert 1 <= own < units, f"seed {seed}"
            rest = units - own if bounded is decode else own
            if rest < units - 1:  # else nothing may be enough
                kept += 1
                assert bounded[rest - 1] <= slack * bounded[-1], f"seed {seed}"
            if rest > 1:  # the favoured lane has all that it may have
                assert bounded[rest - 2] > slack * bounded[-1], f"seed {seed}"
    assert kept > 100


def test_where_no_split_is_good_enough_the_favoured_lane_has_one_unit() -> None:
    assert most_units(lambda units: 100.0 / units, 10, 1.05) == 1


def test_a_device_in_one_piece_is_not_shared() -> None:
    with pytest.raises(AssertionError, match="1 units"):
        most_units(lambda units: 1.0, 1, 1.1)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.3])
def test_splits_that_jitter_within_the_hysteresis_cause_no_switch(width: float) -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    rule = SplitRule(hysteresis=width)
    within = math.ceil(width * 100) - 1
    present = first = settled(rule, 50, None, 100)
    wanted = [50 + rng.randint(-within, within) for _ in range(200)]
    for one in wanted:
        present = settled(rule, one, present, 100)
    assert present == first == 50, f"seed {seed}"
    assert len(set(wanted)) > 1
    assert settled(rule, 50 + within + 1, 50, 100) == 50 + within + 1
