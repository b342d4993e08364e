"""Two lanes of steps beside each other on one device, and the policy that puts prompts into one and
answers into the other."""

from __future__ import annotations

from typing import Any

import pytest

from seesaw.errors import ConfigError
from seesaw.layout.parallel import ParallelLayout
from seesaw.plan.choice import LayoutChoice
from seesaw.plan.lane_costs import Beside
from seesaw.plan.work import Work
from seesaw.sampling_params import SamplingParams
from seesaw.scheduler import policies
from seesaw.scheduler.build import check_lanes
from seesaw.scheduler.counters import StepCounter
from seesaw.scheduler.output import SchedulerOutput
from seesaw.scheduler.request import Request
from seesaw.scheduler.scheduler import Scheduler, SchedulerConfig
from tests.scheduler.harness import (
    CONFIG,
    EOS,
    add,
    assert_all_free,
    ids_of_rows,
    prompt_of,
    rows_of,
    step_of,
    update,
)
from tests.scheduler.lane_costs import FakeLaneCosts

PREFILL, DECODE = 0, 1


def make(policy: str, options: dict[str, Any] | None = None, **overrides: Any) -> Scheduler:
    config = SchedulerConfig(**(CONFIG | {"num_lanes": 2, "share_units": 8} | overrides))
    return Scheduler(config, policies.make(policy, options or {}))


def nexus(**options: Any) -> Scheduler:
    config = {name: options.pop(name) for name in tuple(options) if name in CONFIG}
    return make("nexus", {"prefill_share": 0.5} | options, **config)


def arrive(scheduler: Scheduler, name: str, length: int, arrival_s: float, **sampling: Any) -> None:
    scheduler.add(
        Request(
            name, prompt_of(length, 100 * (len(name) + ord(name[0]))), SamplingParams(**sampling),
            seed=1, eos_token_ids=(EOS,), max_model_len=scheduler.config.max_model_len,
            arrival_s=arrival_s,
        )
    )  # fmt: skip


def steps_of(scheduler: Scheduler) -> list[SchedulerOutput]:
    """All that can be planned now."""
    steps = []
    while (step := scheduler.schedule()) is not None:
        steps.append(step)
    return steps


# -- lanes ----------------------------------------------------------------------------------------


def test_each_lane_has_its_own_steps_in_flight() -> None:
    scheduler = make("tests.scheduler.chaos:ContinuousLanes", max_num_batched_tokens=4)
    for name in "abcd":
        add(scheduler, name, prompt_of(12, ord(name)), max_tokens=4)
    steps = steps_of(scheduler)
    assert [step.lane for step in steps] == [0, 1, 0, 1]
    assert [step.step_id for step in steps] == [0, 1, 2, 3]
    update(scheduler, steps[1])  # of lane 1, before that of lane 0 in front of it
    assert [step.lane for step in steps_of(scheduler)] == [1]


def test_a_request_changes_lanes_when_its_token_is_known() -> None:
    scheduler = nexus()
    add(scheduler, "a", prompt_of(8), max_tokens=4)
    (prefill,) = steps_of(scheduler)
    assert (prefill.lane, rows_of(prefill)) == (PREFILL, [("a", 0, 8, True)])
    assert steps_of(scheduler) == []
    update(scheduler, prefill, 5)
    first, second = steps_of(scheduler)
    assert (first.lane, rows_of(first)) == (DECODE, [("a", 8, 1, True)])
    assert rows_of(second) == [("a", 9, 1, True)], "within a lane steps count on tokens to come"
    assert not first.known_tokens


def test_answers_go_on_and_end_beside_a_long_prompt() -> None:
    """Their blocks come back though an older step, the prompt's, is still in flight."""
    scheduler = nexus(num_blocks=12, max_model_len=40)
    add(scheduler, "a", prompt_of(8), max_tokens=4)
    update(scheduler, step_of(scheduler), 5)
    add(scheduler, "b", prompt_of(30, 300), max_tokens=2)
    prefill, *decodes = steps_of(scheduler)
    assert (prefill.lane, ids_of_rows(prefill)) == (PREFILL, ["b"])
    held = scheduler.kv_usage
    for token in (6, 7, 8):
        (first, *decodes) = decodes
        update(scheduler, first, token)
        decodes += steps_of(scheduler)
    assert not decodes
    assert scheduler.num_in_flight == 1
    assert scheduler.kv_usage == pytest.approx(held - 3 / 12), "a's three blocks"
    update(scheduler, prefill, 9)
    update(scheduler, step_of(scheduler), 9)
    assert_all_free(scheduler)


def test_a_prompt_is_shared_within_a_lane_at_once_and_across_when_it_is_computed() -> None:
    scheduler = make("tests.scheduler.chaos:ContinuousLanes", max_num_seqs=4)
    add(scheduler, "a", prompt_of(9), max_tokens=4)
    add(scheduler, "b", prompt_of(9), max_tokens=4)
    first = step_of(scheduler)
    assert rows_of(first) == [("a", 0, 9, True), ("b", 8, 1, True)]
    add(scheduler, "c", prompt_of(9), max_tokens=4)
    beside = step_of(scheduler)
    assert (beside.lane, rows_of(beside)) == (1, [("c", 0, 9, True)])
    update(scheduler, first, 5, 6)
    add(scheduler, "d", prompt_of(9), max_tokens=4)
    rows = [row for step in steps_of(scheduler) for row in rows_of(step)]
    assert ("d", 8, 1, True) in rows


class _AdmitsOnly(policies.get("tests.scheduler.chaos:ContinuousLanes")):  # type: ignore[misc]
    """Lane 0 runs one token of the oldest request and admits others without a row."""

    def plan(self, step: Any) -> None:
        if step.lane == 1:
            for request in step.running:
                step.schedule(request, 100)
            return
        for request in list(step.waiting):
            step.admit(request)
            if len(step.running) == 1:
                step.schedule(request, 8)


def test_who_shares_what_is_being_written_waits_for_it_in_any_lane() -> None:
    scheduler = make("tests.scheduler.test_lanes:_AdmitsOnly")
    add(scheduler, "a", prompt_of(12), max_tokens=4)
    add(scheduler, "b", prompt_of(9), max_tokens=4)
    first, *rest = steps_of(scheduler)
    assert rows_of(first) == [("a", 0, 8, False)]
    assert first.appended_blocks["b"][:2] == first.appended_blocks["a"][:2]
    assert rest == [], "neither may run in the other lane yet"
    update(scheduler, first)
    second = step_of(scheduler)
    assert (second.lane, ids_of_rows(second)) == (1, ["a", "b"])


def test_a_change_of_shares_is_counted() -> None:
    scheduler = nexus()
    scheduler.counter = StepCounter()
    counts = scheduler.counter.counts
    add(scheduler, "a", prompt_of(8), max_tokens=8)
    alone = step_of(scheduler)
    assert alone.batches[0].compute_share == 1.0
    update(scheduler, alone, 5)
    first, second = steps_of(scheduler)
    assert {one.batches[0].compute_share for one in (first, second)} == {1.0}
    assert counts.num_share_changes == 0
    add(scheduler, "b", prompt_of(8, 300), max_tokens=8)
    prefill = step_of(scheduler)
    assert (prefill.lane, prefill.batches[0].compute_share) == (PREFILL, 0.5)
    update(scheduler, first, 5)
    decode = step_of(scheduler)
    assert (decode.lane, decode.batches[0].compute_share) == (DECODE, 0.5)
    assert counts.num_share_changes == 2


# -- the policy -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age_weight", "order"),
    [
        (0.0, ["short", "mid", "long"]),
        (1e9, ["long", "mid", "short"]),
        # 15 tokens, 8 and 5 for a second less of age, 4 and 10 for two.
        (5.0, ["mid", "short", "long"]),
    ],
)
def test_short_prompts_come_first_unless_others_have_waited(
    age_weight: float, order: list[str]
) -> None:
    scheduler = nexus(age_weight=age_weight, max_num_batched_tokens=64)
    for at, (name, length) in enumerate((("long", 15), ("mid", 8), ("short", 4))):
        arrive(scheduler, name, length, float(at), max_tokens=2)
    assert ids_of_rows(step_of(scheduler)) == order


def test_whole_prompts_share_a_step_and_one_that_is_too_long_runs_alone_in_chunks() -> None:
    scheduler = nexus(prefill_tokens=10, age_weight=0.0)
    for name, length in (("x", 3), ("yy", 6), ("zzz", 25)):
        arrive(scheduler, name, length, 0.0, max_tokens=2)
    first, second = steps_of(scheduler)
    assert rows_of(first) == [("x", 0, 3, True), ("yy", 0, 6, True)]
    assert rows_of(second) == [("zzz", 0, 10, False)]
    arrive(scheduler, "w", 5, 1.0, max_tokens=2)
    update(scheduler, first, 5, 6)
    prefill = next(step for step in steps_of(scheduler) if step.lane == PREFILL)
    assert rows_of(prefill) == [("w", 0, 5, True)], "a short one overtakes the rest"


def test_prompts_with_blocks_go_on_where_none_are_left_for_new_ones() -> None:
    scheduler = nexus(prefill_tokens=8, num_blocks=8, age_weight=0.0, block_watermark=0.0)
    arrive(scheduler, "long", 24, 0.0, max_tokens=2)
    first = step_of(scheduler)
    arrive(scheduler, "new", 12, 0.0, max_tokens=2)
    assert ids_of_rows(step_of(scheduler)) == ["long"], "two blocks are free, three are needed"
    update(scheduler, first)


def test_blocks_above_the_watermark_are_for_new_prompts() -> None:
    scheduler = nexus(block_watermark=0.5, age_weight=0.0, max_num_batched_tokens=64)
    # 16 blocks, of which a and b take 5 each, and 8 must stay free for who runs.
    for name in "ab":
        arrive(scheduler, name, 20, 0.0, max_tokens=8)
    assert ids_of_rows(step_of(scheduler)) == ["a"]


def test_of_equal_prompts_the_one_that_came_first_is_first() -> None:
    scheduler = nexus(age_weight=0.0)
    arrive(scheduler, "late", 6, 5.0, max_tokens=2)
    arrive(scheduler, "early", 6, 1.0, max_tokens=2)
    assert ids_of_rows(step_of(scheduler)) == ["early", "late"]


def test_a_prompt_under_way_yields_to_an_answer_though_that_is_younger() -> None:
    scheduler = nexus(prefill_tokens=8, num_blocks=7, age_weight=0.0, block_watermark=0.0)
    arrive(scheduler, "prompt", 24, 0.0, max_tokens=2)
    first = step_of(scheduler)
    arrive(scheduler, "new", 4, 1.0, max_tokens=8)
    prompt, new = scheduler._residency.requests.values()
    update(scheduler, first)
    steps, ids = steps_of(scheduler), []
    while steps:
        step, *steps = steps
        ids += ids_of_rows(step)
        update(scheduler, step, *[5 for row in step.rows if row.samples])
        steps += steps_of(scheduler)
    assert ids.index("new") < len(ids) - 1 - ids[::-1].index("prompt"), "it overtakes the prompt"
    assert (prompt.num_preemptions, new.num_preemptions) == (1, 0)
    assert (prompt.num_output_tokens, new.num_output_tokens) == (2, 8)
    assert_all_free(scheduler)


def by_costs(costs: FakeLaneCosts, **options: Any) -> Scheduler:
    policy = policies.make("nexus", options)
    policy.share_by(costs)  # type: ignore[attr-defined]
    return Scheduler(SchedulerConfig(**CONFIG, num_lanes=2, share_units=8), policy)


@pytest.mark.parametrize(
    ("kv_switch", "length", "expected"), [(1.0, 8, 3), (0.0, 8, 5), (0.5, 8, 3), (0.5, 28, 5)]
)
def test_the_share_follows_from_costs_and_from_how_full_the_pool_is(
    kv_switch: float, length: int, expected: int
) -> None:
    """By `FakeLaneCosts` a step of one answer on 5 of 8 units takes less than 1.1 times as long as
    on all, on 4 more; one of a prompt of 8 tokens takes 1.3 times as long on 5. Of 16 blocks one of
    28 tokens has more than half, with those of b."""
    scheduler = by_costs(FakeLaneCosts(), kv_switch=kv_switch)
    add(scheduler, "a", prompt_of(length), max_tokens=8)
    update(scheduler, step_of(scheduler), 5)
    first, _ = steps_of(scheduler)
    add(scheduler, "b", prompt_of(8, 300), max_tokens=8)
    prefill = step_of(scheduler)
    assert (prefill.lane, prefill.batches[0].compute_share) == (PREFILL, expected / 8)
    update(scheduler, first, 5)
    decode = step_of(scheduler)
    assert (decode.lane, decode.batches[0].compute_share) == (DECODE, 1 - expected / 8)


@pytest.mark.parametrize("held", range(2, 11))
def test_answers_are_favoured_from_just_the_share_of_blocks_that_was_given(
    held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ten blocks so many tenths are held, to the last bit."""
    usages: list[float] = []

    def noted(rule: Any, prefill: Any, decode: Any, units: int, kv_usage: float) -> int:
        usages.append(kv_usage)
        return 4

    monkeypatch.setattr("seesaw.scheduler.policies.nexus.split", noted)
    config = CONFIG | {"num_blocks": 10, "num_lanes": 2, "share_units": 8}
    policy = policies.make("nexus", {"block_watermark": 0.0, "age_weight": 0.0})
    policy.share_by(FakeLaneCosts())  # type: ignore[attr-defined]
    scheduler = Scheduler(SchedulerConfig(**config), policy)
    add(scheduler, "a", prompt_of(1), max_tokens=8)
    update(scheduler, step_of(scheduler), 5)
    steps_of(scheduler)
    add(scheduler, "b", prompt_of(4 * (held - 1), 300), max_tokens=1)
    step_of(scheduler)
    assert usages == [held / 10]


@pytest.mark.parametrize(("hysteresis", "expected"), [(0.1, {2, 3}), (0.2, {3})])
def test_a_split_that_hardly_differs_does_not_take_the_place_of_the_present_one(
    hysteresis: float, expected: set[int]
) -> None:
    """By `FakeLaneCosts` prompts can have 3 units beside one answer, 2 beside two."""
    scheduler = by_costs(
        FakeLaneCosts(), kv_switch=1.0, hysteresis=hysteresis, prefill_tokens=4, age_weight=0.0
    )
    add(scheduler, "a", prompt_of(4), max_tokens=20)
    add(scheduler, "c", prompt_of(4, 100), max_tokens=4)
    update(scheduler, step_of(scheduler), 5)
    steps, units = steps_of(scheduler), set()
    add(scheduler, "long", prompt_of(24, 300), max_tokens=2)
    while steps or (steps := steps_of(scheduler)):
        step = steps.pop(0)
        share = step.batches[0].compute_share
        if step.lane == PREFILL and share < 1:
            units.add(round(8 * share))
        update(scheduler, step, *[5 for row in step.rows if row.samples])
        steps += steps_of(scheduler)
    assert units == expected


class _Asked(FakeLaneCosts):
    def __init__(self) -> None:
        self.of_prompts: list[tuple[int, Beside | None]] = []
        self.of_answers: list[tuple[int, Beside | None]] = []

    def seconds(self, work: Work, units: int, beside: Beside | None = None) -> float:
        kept = self.of_answers if work.num_tokens == 1 else self.of_prompts
        kept.append((units, beside))
        return super().seconds(work, units, beside)


@pytest.mark.parametrize("kv_switch", [0.0, 1.0])
def test_answers_are_costed_beside_prompts_on_the_other_units_and_prompts_alone(
    kv_switch: float,
) -> None:
    costs = _Asked()
    scheduler = by_costs(costs, kv_switch=kv_switch)
    add(scheduler, "a", prompt_of(8), max_tokens=8)
    update(scheduler, step_of(scheduler), 5)
    steps_of(scheduler)
    add(scheduler, "b", prompt_of(6, 300), max_tokens=8)
    step_of(scheduler)
    assert all(beside is None for _, beside in costs.of_prompts)
    for units, beside in costs.of_answers:
        assert beside is not None
        assert (beside.work.num_tokens, beside.units) == (6, max(1, 8 - units))
    assert bool(costs.of_prompts) == (kv_switch == 0.0)
    assert bool(costs.of_answers) == (kv_switch == 1.0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"prefill_tokens": -1}, "prefill_tokens=-1"),
        ({"age_weight": -1.0}, "age_weight"),
        ({"age_weight": float("nan")}, "age_weight"),
        ({"decode_slowdown": 0.9}, "decode_slowdown=0.9: expected 1 or more"),
        ({"prefill_share": 1.0}, "leaves nothing"),
        ({"hysteresis": 2.0}, "fraction"),
        ({"kv_swich": 0.5}, "kv_switch"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        policies.make("nexus", options)


@pytest.mark.parametrize(
    ("layout", "units", "told"),
    [
        (ParallelLayout(tp=2), 16, "one device of a replica, got layout .*tp2"),
        (ParallelLayout(pp=2), 16, "one device"),
        (ParallelLayout(), 1, "a single part"),
    ],
)
def test_layouts_without_room_for_lanes_are_refused(
    layout: ParallelLayout, units: int, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        check_lanes("nexus", LayoutChoice(layout, layout, "given"), units)
    both = ParallelLayout(dp=2)
    check_lanes("nexus", LayoutChoice(both, both, "given"), 2)


class _ThreeLanes:
    Options = policies.get("nexus").Options
    num_lanes = 3

    def __init__(self, options: Any) -> None: ...
    def plan(self, step: Any) -> None: ...


class _SplitsLayers(_ThreeLanes):
    num_lanes = 2
    splits_layers = True


class _HasATier(_ThreeLanes):
    num_lanes = 2
    uses_tier = True


def test_two_lanes_are_the_most() -> None:
    with pytest.raises(ConfigError, match="num_lanes=3"):
        policies.num_lanes("tests.scheduler.test_lanes:_ThreeLanes")
    assert [policies.num_lanes(name) for name in ("nexus", "continuous")] == [2, 1]


@pytest.mark.parametrize("name", ["_SplitsLayers", "_HasATier"])
def test_lanes_have_one_layout_and_run_all_layers(name: str) -> None:
    with pytest.raises(ConfigError, match="two lanes share one device"):
        policies.num_lanes(f"tests.scheduler.test_lanes:{name}")
