"""Latencies by hand: what each figure is of, and whom a promise was kept to."""

from __future__ import annotations

import math
import random

import pytest

from seesaw.latency import Slo, Spread, Timing, gaps_s, quantile, samples

QUICK = Timing.of(1.0, 1.5, [2.0, 2.5, 2.75])
SINGLE = Timing.of(2.0, 2.0, [6.0])
STALLED = Timing.of(0.0, 3.0, [4.0, 4.25, 9.0, 9.5])
ALL = (QUICK, SINGLE, STALLED)


def test_spreads_are_on_the_line_between_the_nearest_values() -> None:
    assert Spread.of([]) == Spread(mean=0.0, p50=0.0, p90=0.0, p99=0.0, max=0.0)
    assert Spread.of([3.0]) == Spread(mean=3.0, p50=3.0, p90=3.0, p99=3.0, max=3.0)
    values = [float(value) for value in range(101)]
    expected = Spread(mean=50.0, p50=50.0, p90=90.0, p99=99.0, max=100.0)
    assert Spread.of(values[::-1]) == expected
    assert Spread.of([0.0, 1.0]) == Spread(
        mean=0.5, p50=0.5, p90=pytest.approx(0.9), p99=pytest.approx(0.99), max=1.0
    )
    assert quantile([1.0, 2.0, 4.0], 0.75) == 3.0


def test_quantiles_rise_and_stay_among_the_values() -> None:
    """To the last bit, or a bound that all values keep is broken by their quantile."""
    rng = random.Random(seed := random.SystemRandom().randrange(2**48))
    for _ in range(2000):
        values = [rng.random() for _ in range(rng.randint(1, 3))] * rng.randint(1, 3)
        one = Spread.of(values)
        rising = (min(values), one.p50, one.p90, one.p99, one.max, max(values))
        assert list(rising) == sorted(rising), f"seed {seed}: {values}"
    assert quantile([1.0, math.inf, math.inf], 0.75) == math.inf


def test_each_latency_of_answers_of_three_one_and_four_tokens() -> None:
    assert samples(ALL) == {
        "delay": [0.5, 0.0, 3.0],
        "first_token": [1.0, 4.0, 4.0],
        "between_tokens": [0.5, 0.25, 0.25, 4.75, 0.5],
        "per_token": [0.375, 5.5 / 3],
        "normalized": [1.75 / 3, 4.0, 9.5 / 4],
        "end_to_end": [1.75, 4.0, 9.5],
    }


def test_gaps_that_were_not_noted_are_left_out() -> None:
    moments = Timing(arrival_s=0.0, scheduled_s=0.0, first_s=1.0, end_s=3.0, num_tokens=3)
    assert "between_tokens" not in samples([QUICK, moments])
    assert samples([moments])["per_token"] == [1.0]
    assert list(gaps_s([moments, QUICK])) == [0.5, 0.25]


def test_a_promise_is_kept_by_the_first_token_and_all_later_ones() -> None:
    assert Slo().num_met(ALL) == 3
    assert [Slo(ttft_s=1.0).is_met(one) for one in ALL] == [True, False, False]
    assert [Slo(tbt_s=0.5).is_met(one) for one in ALL] == [True, True, False]
    assert [Slo(ttft_s=4.0, tbt_s=4.75).is_met(one) for one in ALL] == [True, True, True]
    assert Slo(ttft_s=4.0, tbt_s=4.7).num_met(ALL) == 2
    assert [Slo(tbt_s=bound).num_stalls(ALL) for bound in (0.2, 0.5, 4.75)] == [5, 1, 0]


def test_figures_are_those_of_the_tokens_times_whatever_the_clock() -> None:
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    for _ in range(200):
        # Powers of two and small integers: sums are exact, so the clock may begin anywhere.
        arrival, delay = rng.randrange(64) / 8, rng.randrange(64) / 8
        steps = [rng.randrange(1, 64) / 8 for _ in range(rng.randint(1, 9))]
        zero = rng.randrange(1 << 20) / 8
        at, times = arrival + delay, []
        for step in steps:
            at += step
            times.append(at)
        one = Timing.of(arrival, arrival + delay, times)
        moved = Timing.of(arrival + zero, arrival + delay + zero, [time + zero for time in times])
        assert samples([one]) == samples([moved]), f"seed {seed}"
        assert one.gaps_s == steps[1:], f"seed {seed}"
        assert (one.delay_s, one.ttft_s) == (delay, delay + steps[0]), f"seed {seed}"
        bound = rng.choice(steps)
        stalled = sum(step > bound for step in steps[1:])
        assert Slo(tbt_s=bound).num_stalls([one]) == stalled, f"seed {seed}"
        assert Slo(tbt_s=bound).is_met(one) == (stalled == 0), f"seed {seed}"
        assert Slo(ttft_s=math.inf, tbt_s=bound).num_met([one]) == (stalled == 0)
