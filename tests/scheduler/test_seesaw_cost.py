"""The rules of policy `seesaw-cost` on made-up times, with answers worked out by hand."""

from __future__ import annotations

import pytest

from seesaw.scheduler.output import Batch, ModelOutput, Phase, Row, SchedulerOutput
from seesaw.scheduler.policies.costs import MEMORY, Costs, Mean, StepTimes


def step_of(
    phase: Phase, *, decodes: int = 0, chunks: tuple[int, ...] = (), reshard: bool = False
) -> SchedulerOutput:
    rows = [Row(f"d{index}", 9, 1, 0, 2, True) for index in range(decodes)]
    rows += [Row(f"p{index}", 0, count, 0, 2, False) for index, count in enumerate(chunks)]
    return SchedulerOutput(0, phase, reshard, lanes=[Batch(rows)])


def observe(costs: Costs, step: SchedulerOutput, busy_s: float, reshard_s: float = 0.0) -> None:
    costs.observe(step, ModelOutput(0, [], busy_s=busy_s, reshard_s=reshard_s))


def measured(reshard_s: float = 0.5) -> Costs:
    """Prefill 1 ms a token; a decode step 10 ms for 1 row, 20 ms for 5 and more ms from there."""
    costs = Costs()
    observe(costs, step_of("prefill", chunks=(60, 40)), 0.1)
    observe(costs, step_of("decode", decodes=1, reshard=True), 0.01, reshard_s)
    observe(costs, step_of("decode", decodes=5), 0.02)
    return costs


# -- measuring ------------------------------------------------------------------------------------


def test_a_mean_is_seconds_per_unit() -> None:
    mean = Mean()
    mean.add(3.0, 10)
    mean.add(1.0, 10)
    assert mean.value == 0.2


def test_a_mean_follows_what_changes() -> None:
    mean = Mean()
    for _ in range(10 * MEMORY):
        mean.add(1.0)
    for _ in range(4 * MEMORY):
        mean.add(3.0)
    assert 2.9 < mean.value < 3.0, "the past has all but faded"


@pytest.mark.parametrize(
    ("rows", "seconds"),
    [(1, 0.01), (5, 0.02), (3, 0.015), (4, 0.0175), (0.5, 0.01), (10, 0.04), (7.5, 0.03)],
)
def test_step_times_between_and_beyond_what_was_measured(rows: float, seconds: float) -> None:
    times = StepTimes()
    times.add(5, 0.02)
    times.add(1, 0.01)
    assert times.seconds(rows) == pytest.approx(seconds)


def test_one_measured_size_is_enough_for_an_answer() -> None:
    times = StepTimes()
    times.add(4, 0.02)
    assert [times.seconds(rows) for rows in (1, 4, 8)] == [0.02, 0.02, 0.04]
    assert times.best_rate() == 200


def test_what_a_step_measures() -> None:
    costs = Costs()
    observe(costs, step_of("prefill", chunks=(60, 40), reshard=True), 0.2, reshard_s=3.0)
    observe(costs, step_of("decode", decodes=4, reshard=True), 0.01, reshard_s=1.0)
    observe(costs, step_of("decode", decodes=4, chunks=(90,)), 0.1)
    observe(costs, step_of("decode", chunks=(10,)), 0.01)
    assert costs.prefill.value == pytest.approx(0.002)
    assert costs.reshard.value == 2.0
    assert costs.decode.sizes == [4]
    # 90 tokens took what the four rows beside them did not, 10 more 0.01 s.
    assert costs.in_place.value == pytest.approx((0.09 + 0.01) / 100)


def test_a_chunk_of_one_token_that_draws_nothing_is_no_decode() -> None:
    costs = Costs()
    observe(costs, step_of("decode", chunks=(1,)), 0.01)
    assert costs.decode.sizes == []
    assert costs.in_place.value == 0.01


def test_steps_that_say_no_time_measure_nothing() -> None:
    costs = Costs()
    observe(costs, step_of("prefill", chunks=(5,)), 0.0)
    observe(costs, step_of("decode", decodes=5), 0.0)
    observe(costs, step_of("decode", decodes=5, chunks=(5,)), 0.0)
    observe(costs, step_of("prefill"), 0.1)
    observe(costs, step_of("decode"), 0.1)
    assert costs == Costs()


def test_a_mixed_step_before_any_decode_step_cannot_be_split() -> None:
    costs = Costs()
    observe(costs, step_of("decode", decodes=4, chunks=(90,)), 0.1)
    assert costs == Costs()


def test_costs_are_known_when_all_of_them_were_measured() -> None:
    costs = Costs()
    assert not costs.are_known(1)
    observe(costs, step_of("prefill", chunks=(10,)), 0.1)
    observe(costs, step_of("decode", decodes=1), 0.1)
    observe(costs, step_of("decode", decodes=1), 0.1)
    assert not costs.are_known(1), "one size of step says nothing about another"
    observe(costs, step_of("decode", decodes=2), 0.1)
    assert not costs.are_known(1), "no change of layout yet"
    observe(costs, step_of("prefill", reshard=True), 0.0, reshard_s=0.1)
    assert costs.are_known(1)
    assert not costs.are_known(2), "one prefill step"


# -- rules ----------------------------------------------------------------------------------------


def test_decode_intensity_is_the_share_of_the_best_rate() -> None:
    costs = measured()  # 100 rows/s with 1 row, 250 with 5
    assert costs.decode_intensity(5) == 1.0
    assert costs.decode_intensity(1) == pytest.approx(0.4)
    assert costs.decode_intensity(3) == pytest.approx(0.8)
    assert costs.decode_intensity(50) == 1.0, "never above what was measured"
    assert costs.decode_intensity(0) == 0.0


def test_prefill_intensity_on_one_stage_is_what_two_changes_leave() -> None:
    # 4000 tokens take 4 s, two changes 1 s.
    assert measured().prefill_intensity(4000, 100, 1, rows_after=5) == pytest.approx(3 / 4)
    assert measured().prefill_intensity(1000, 100, 1, rows_after=5) == pytest.approx(0.0)
    assert measured().prefill_intensity(500, 100, 1, rows_after=5) == pytest.approx(-1.0)
    assert measured(0.0).prefill_intensity(500, 100, 1, rows_after=5) == 1.0


def test_prefill_intensity_counts_the_bubble_of_a_pipeline() -> None:
    # Three stages, 10 steps of 0.1 s: 1 + 2 * 0.1 s; the decode steps that follow take 0.02 s each,
    # so a bubble of 2 * 0.08 s; two changes take 0.2 s.
    found = measured(0.1).prefill_intensity(1000, 100, 3, rows_after=5)
    assert found == pytest.approx((1.2 - 0.16 - 0.2) / 1.2)


def test_decode_steps_longer_than_prefill_steps_leave_no_bubble() -> None:
    # Steps of 5 tokens take 5 ms, less than the 20 ms of a decode step.
    found = measured(0.1).prefill_intensity(1000, 5, 3, rows_after=5)
    assert found == pytest.approx((1.01 - 0.2) / 1.01)


def test_nothing_to_prefill_has_no_intensity() -> None:
    assert measured().prefill_intensity(0, 100, 3, rows_after=5) == 0.0


def test_a_change_pays_where_the_tokens_are_many_enough() -> None:
    costs = measured(0.5)
    assert costs.pays(1), "prefilling in the decode layout was not measured"
    # 3 ms a token there, 1 ms here: 2 ms are saved a token, two changes cost 1 s.
    observe(costs, step_of("decode", decodes=5, chunks=(100,)), 0.32)
    assert not costs.pays(500)
    assert costs.pays(501)


def test_a_change_never_pays_where_the_decode_layout_prefills_as_fast() -> None:
    costs = measured(0.0)
    observe(costs, step_of("decode", chunks=(100,)), 0.1)
    assert not costs.pays(10**9)
