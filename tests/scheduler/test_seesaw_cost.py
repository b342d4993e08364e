"""The rules of policy `seesaw-cost` on made-up times, with answers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from seesaw.errors import ConfigError
from seesaw.sampling_params import SamplingParams
from seesaw.scheduler import policies
from seesaw.scheduler.config import SchedulerConfig, TierConfig
from seesaw.scheduler.output import (
    Batch,
    ModelOutput,
    Phase,
    Row,
    SchedulerOutput,
    TransferDone,
)
from seesaw.scheduler.policies.costs import MEMORY, Costs, Mean, StepTimes
from seesaw.scheduler.policies.seesaw_cost import SeesawCost, SeesawCostOptions
from seesaw.scheduler.request import Request
from seesaw.scheduler.scheduler import Scheduler


def step_of(
    phase: Phase, *, decodes: int = 0, chunks: tuple[int, ...] = (), reshard: bool = False
) -> SchedulerOutput:
    rows = [Row(f"d{index}", 9, 1, 0, 2, True) for index in range(decodes)]
    rows += [Row(f"p{index}", 0, count, 0, 2, False) for index, count in enumerate(chunks)]
    return SchedulerOutput(0, phase, reshard, batches=[Batch(rows)])


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


# -- the policy -----------------------------------------------------------------------------------


def two_residents_and_a_prompt(costs: Costs, *, least_measured: int = 1) -> Scheduler:
    """The tier is drained, two requests decode, and a prompt of 16 tokens waits, which the tier
    could take and which is more than a tail (8 tokens)."""
    config = SchedulerConfig(
        num_blocks=32,
        block_size=8,
        num_layers=1,
        max_model_len=64,
        max_num_seqs=4,
        max_num_batched_tokens=8,
        debug=True,
        tier=TierConfig(prefill_blocks=8, tier_blocks=2, tier_block_size=8),
    )
    policy = SeesawCost(SeesawCostOptions(least_measured=least_measured))
    scheduler = Scheduler(config, policy)
    num_loads = 0
    for name in "ab":
        scheduler.add(request_of(name, 8))
    while scheduler.phase == "prefill" or num_loads < 2:
        num_loads += len(run_one(scheduler).loads)
    policy.costs = costs
    scheduler.add(request_of("c", 16))
    return scheduler


def request_of(name: str, num_prompt: int) -> Request:
    prompt = [ord(name) * 100 + index for index in range(num_prompt)]
    sampling = SamplingParams(max_tokens=20)
    return Request(name, prompt, sampling, seed=0, eos_token_ids=(), max_model_len=64)


def run_one(scheduler: Scheduler) -> SchedulerOutput:
    """A step, with all of it reported at once."""
    step = scheduler.schedule()
    assert step is not None
    drawn = sum(row.samples for row in step.rows)
    scheduler.update(ModelOutput(step.step_id, [7] * drawn))
    for transfer in (*step.stores, *step.loads):
        scheduler.transferred(TransferDone(transfer.transfer_id))
    return step


def rows_of(step: SchedulerOutput) -> list[tuple[str, int]]:
    return [(row.request_id, row.num_tokens) for row in step.rows]


def costs_with(reshard_s: float, in_place_s: float | None = None) -> Costs:
    """Prefill 1 ms a token, decode 100 rows/s with 2 rows and 200 with 4. So two residents decode
    at half intensity, and 16 prompt tokens take 16 ms."""
    costs = Costs()
    observe(costs, step_of("prefill", chunks=(10,)), 0.01)
    observe(costs, step_of("decode", decodes=2), 0.02)
    observe(costs, step_of("decode", decodes=4, reshard=True), 0.02, reshard_s)
    if in_place_s is not None:
        observe(costs, step_of("decode", chunks=(10,)), 10 * in_place_s)
    return costs


def test_back_to_prefill_when_it_is_the_more_intense_phase() -> None:
    # 1 - 2 * 3 / 16 is 0.625, more than 0.5
    step = run_one(two_residents_and_a_prompt(costs_with(0.003)))
    assert (step.phase, step.reshard, rows_of(step)) == ("prefill", True, [("c", 8)])


def test_decode_goes_on_while_it_is_the_more_intense_phase() -> None:
    # 1 - 2 * 5 / 16 is 0.375, less than 0.5
    scheduler = two_residents_and_a_prompt(costs_with(0.005))
    for _ in range(3):
        step = run_one(scheduler)
        assert (step.phase, rows_of(step)) == ("decode", [("a", 1), ("b", 1)])
    scheduler.finish("a", "abort")  # one row decodes at a quarter of the best rate
    assert run_one(scheduler).phase == "prefill"


def test_with_nothing_to_decode_what_waits_is_prefilled_whatever_it_costs() -> None:
    scheduler = two_residents_and_a_prompt(costs_with(100.0))
    assert run_one(scheduler).phase == "decode"
    scheduler.finish("a", "abort")
    scheduler.finish("b", "abort")
    assert run_one(scheduler).phase == "prefill"


def test_before_enough_is_measured_it_is_seesaw() -> None:
    scheduler = two_residents_and_a_prompt(costs_with(100.0), least_measured=5)
    assert run_one(scheduler).phase == "prefill"


def test_in_place_where_two_changes_cost_more_than_they_save() -> None:
    # 2 ms saved a token are 32 ms, two changes take 40.
    step = run_one(two_residents_and_a_prompt(costs_with(0.02, in_place_s=0.003)))
    assert (step.phase, rows_of(step)) == ("decode", [("a", 1), ("b", 1), ("c", 6)])


def test_not_in_place_where_two_changes_save_more_than_they_cost() -> None:
    # 10 ms saved a token are 160 ms; but two residents decode at more than 1 - 2 * 20 / 16.
    scheduler = two_residents_and_a_prompt(costs_with(0.02, in_place_s=0.011))
    assert rows_of(run_one(scheduler)) == [("a", 1), ("b", 1)]
    scheduler.finish("a", "abort")
    scheduler.finish("b", "abort")
    assert run_one(scheduler).phase == "prefill"


def test_the_scheduler_tells_the_policy_what_steps_took() -> None:
    scheduler = two_residents_and_a_prompt(Costs())
    step = scheduler.schedule()
    assert step is not None
    assert step.reshard
    scheduler.update(ModelOutput(step.step_id, [], busy_s=0.5, reshard_s=2.0))
    policy = scheduler._policy
    assert isinstance(policy, SeesawCost)
    assert policy.costs.reshard.value == 2.0
    assert policy.costs.prefill.value == 0.5 / 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"least_measured": 0}, "least_measured=0: expected steps, at least 1"),
        ({"least_measured": True}, "least_measured=True: expected steps"),
        ({"least_measured": 2.5}, "least_measured=2.5: expected steps"),
        ({"load_watermark": 1.0}, "load_watermark=1.0: expected a fraction"),
        ({"tail": True}, "no option 'tail'"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        policies.make("seesaw-cost", options)
    assert message in str(error.value)
