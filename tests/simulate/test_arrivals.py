"""Requests that come one by one: when each of their tokens is known, and how many wait."""

from __future__ import annotations

from dataclasses import replace

import pytest

from seesaw.scheduler.policies.continuous import Continuous
from seesaw.scheduler.step import StepBuilder
from seesaw.simulate.simulation import simulate
from tests.simulate.scenarios import make_scenario


def test_when_each_token_was_known_by_hand() -> None:
    """Steps of 1 s. The second request comes during the first step and is in the third, as the
    second is handed over by then."""
    scenario = make_scenario([(0.0, 4, 5), (0.5, 4, 2)], times_tokens=True)
    result = simulate(scenario)
    one, other = result.timings
    assert (one.arrival_s, one.scheduled_s, one.first_s, one.end_s) == (0.0, 0.0, 1.0, 5.0)
    assert one.gaps_s == [1.0, 1.0, 1.0, 1.0]
    assert (other.arrival_s, other.scheduled_s, other.first_s) == (0.5, 1.0, 3.0)
    assert other.gaps_s == [1.0]
    assert result.samples["delay"] == [0.0, 0.5]
    assert result.samples["between_tokens"] == [1.0] * 5
    plain = simulate(replace(scenario, times_tokens=False))
    assert plain.timings == ()
    del result.samples["between_tokens"]
    assert plain.samples == result.samples


class Looking(Continuous):
    """Notes how many requests wait."""

    most_waiting = 0

    def plan(self, step: StepBuilder) -> None:
        Looking.most_waiting = max(Looking.most_waiting, len(step.waiting))
        super().plan(step)


@pytest.mark.parametrize(("open_loop", "most_waiting"), [(False, 2), (True, 10)])
def test_an_open_loop_hands_over_all_that_has_come(open_loop: bool, most_waiting: int) -> None:
    Looking.most_waiting = 0
    result = simulate(
        make_scenario(
            [(0.0, 4, 2)] * 10, policy=f"{__name__}:Looking", max_num_seqs=1, open_loop=open_loop
        )
    )
    assert Looking.most_waiting == most_waiting
    assert result.elapsed_s == 20.0
