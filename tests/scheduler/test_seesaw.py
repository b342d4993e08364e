"""Policy `seesaw`: when phases change, what tail mode spares, and its options."""

from __future__ import annotations

import random
from typing import Any

import pytest

from seesaw.errors import ConfigError
from seesaw.scheduler import policies
from seesaw.scheduler.scheduler import Scheduler, SchedulerConfig
from tests.scheduler.harness import (
    CONFIG,
    add,
    ids_of_rows,
    make_tiered,
    prompt_of,
    step_of,
    transferred,
    update,
)


def phases(scheduler: Scheduler, num_steps: int = 400) -> list[tuple[str, set[str]]]:
    """Runs to the end, everything reported at once: each phase and who had rows in it."""
    found: list[tuple[str, set[str]]] = [(scheduler.phase, set())]
    for _ in range(num_steps):
        step = scheduler.schedule()
        if step is None:
            break
        if step.reshard:
            found.append((step.phase, set()))
        found[-1][1].update(ids_of_rows(step))
        update(scheduler, step, *([5] * sum(r.samples for r in step.rows)))
        transferred(scheduler, *step.stores, *step.loads)
    assert scheduler.num_unfinished == 0, "not done"
    return found


def with_prompts(
    *lengths: int, max_tokens: int = 3, options: dict[str, Any] | None = None, **config: Any
) -> Scheduler:
    scheduler = make_tiered(options, **config)
    for index, length in enumerate(lengths):
        add(scheduler, str(index), prompt_of(length, 100 * index), max_tokens=max_tokens)
    return scheduler


# -- minimal --------------------------------------------------------------------------------------


def test_the_tier_decides_how_many_prompts_a_phase_takes() -> None:
    """Four prompts of two blocks each, a tier of four, a decode pool for one request."""
    scheduler = with_prompts(8, 8, 8, 8, tier_blocks=4, num_blocks=3)
    assert phases(scheduler) == [
        ("prefill", {"0", "1", "2"}),  # the first is loaded, which makes room for the third
        ("decode", {"0", "1"}),
        ("prefill", {"3"}),  # the load of the third has drained the tier
        ("decode", {"2", "3"}),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_each_change_of_phase_was_announced_and_nothing_else_for_long(seed: int) -> None:
    """A step says what the policy expects. It expects nothing of steps that go on for long."""
    rng = random.Random(seed)
    lengths = [rng.randrange(4, 9) for _ in range(30)]
    scheduler = with_prompts(
        *lengths, max_tokens=12, tier_blocks=24, num_blocks=12, max_num_batched_tokens=8
    )
    announced: list[str | None] = []
    changes = 0
    for _ in range(600):
        step = scheduler.schedule()
        if step is None:
            break
        if step.reshard:
            changes += 1
            assert announced[-1] == step.phase, f"step {step.step_id} came unannounced"
            announced.clear()
        assert step.announce != step.phase
        announced.append(step.announce)
        if step.phase == "prefill" and step.announce is None:
            assert len(scheduler._residency.waiting) > 2
        update(scheduler, step, *([5] * sum(r.samples for r in step.rows)))
        transferred(scheduler, *step.stores, *step.loads)
    assert scheduler.num_unfinished == 0
    assert changes > 2


def test_prefill_begins_again_when_the_last_load_is_done_and_residents_stay() -> None:
    scheduler = with_prompts(8, 8, max_tokens=20, tier_blocks=2, num_blocks=16, max_num_seqs=1)
    first = step_of(scheduler)
    update(scheduler, first, 5)
    transferred(scheduler, *first.stores)
    load = step_of(scheduler)
    update(scheduler, load)
    assert (load.phase, len(load.loads)) == ("prefill", 1)
    assert scheduler.schedule() is None, "the load makes room for the next prompt"
    transferred(scheduler, *load.loads)
    second = step_of(scheduler)
    assert (second.phase, ids_of_rows(second)) == ("prefill", ["1"])
    update(scheduler, second, 5)
    decode = step_of(scheduler)
    assert (decode.reshard, ids_of_rows(decode)) == (True, ["0"]), "it was not computed again"


def tier_blocks_at_each_return(low_mark: float) -> list[int]:
    """Tier blocks held whenever prefill begins again."""
    scheduler = with_prompts(
        *[8] * 6, max_tokens=12, tier_blocks=4, max_num_seqs=1, options={"low_mark": low_mark}
    )
    found: list[int] = []
    while scheduler.num_unfinished:
        held = scheduler.num_tier_blocks_used
        step = step_of(scheduler)
        if step.reshard and step.phase == "prefill":
            found.append(held)
        update(scheduler, step, *([5] * sum(row.samples for row in step.rows)))
        transferred(scheduler, *step.stores, *step.loads)
    return found


def test_the_tier_is_drained_before_prefill_begins_again() -> None:
    assert set(tier_blocks_at_each_return(0.0)) == {0}


def test_hysteresis_begins_earlier() -> None:
    assert max(tier_blocks_at_each_return(0.5)) == 2


def test_a_prompt_as_large_as_the_tier_and_a_request_as_large_as_the_decode_pool() -> None:
    scheduler = with_prompts(
        16, 16, 16, max_tokens=17, tier_blocks=4, num_blocks=8, prefill_blocks=4
    )
    assert [phase for phase, _ in phases(scheduler)] == ["prefill", "decode"] * 2


def test_nothing_to_decode_is_no_reason_to_change() -> None:
    scheduler = with_prompts(8, 8, 8, max_tokens=1, tier_blocks=1)
    assert phases(scheduler) == [("prefill", {"0", "1", "2"})]


def test_nothing_at_all() -> None:
    scheduler = make_tiered()
    assert scheduler.schedule() is None
    assert scheduler.stats.num_transitions == 0


# -- the other switches ---------------------------------------------------------------------------


def resident_and_a_new_prompt(switch: str) -> Scheduler:
    scheduler = with_prompts(8, max_tokens=30, options={"switch": switch})
    for _ in range(4):
        step = step_of(scheduler)
        update(scheduler, step, *([5] * len(ids_of_rows(step))))
        transferred(scheduler, *step.stores, *step.loads)
    assert scheduler.phase == "decode"
    add(scheduler, "stored", prompt_of(4, 600), max_tokens=30)
    return scheduler


@pytest.mark.parametrize(
    ("switch", "phase"), [("minimal", "prefill"), ("prefill-first", "prefill"),
                          ("decode-first", "decode")],
)  # fmt: skip
def test_a_prompt_that_arrives_beside_a_resident(switch: str, phase: str) -> None:
    assert step_of(resident_and_a_new_prompt(switch)).phase == phase


@pytest.mark.parametrize(("switch", "phase"), [("minimal", "decode"), ("prefill-first", "prefill")])
def test_a_prompt_that_arrives_while_the_tier_is_in_use(switch: str, phase: str) -> None:
    scheduler = resident_and_a_new_prompt(switch)
    for _ in range(2):  # prefilled; its store is not reported
        step = step_of(scheduler)
        update(scheduler, step, *([5] * len(ids_of_rows(step))))
    assert (step.phase, scheduler.num_tier_blocks_used) == ("decode", 1)
    add(scheduler, "new", prompt_of(4, 700))
    assert step_of(scheduler).phase == phase


def test_decode_first_ends_everything_before_it_goes_back() -> None:
    scheduler = with_prompts(
        8, 8, 8, max_tokens=12, tier_blocks=4, num_blocks=5, options={"switch": "decode-first"}
    )
    assert phases(scheduler)[:3] == [
        ("prefill", {"0", "1", "2"}), ("decode", {"0", "1", "2"}),
    ]  # fmt: skip


# -- tail -----------------------------------------------------------------------------------------


def test_a_few_last_prompts_are_prefilled_beside_rows_that_decode() -> None:
    scheduler = with_prompts(8, 8, 6, max_tokens=20, tier_blocks=2, max_num_seqs=1,
                             options={"tail": True})  # fmt: skip
    assert phases(scheduler) == [("prefill", {"0", "1"}), ("decode", {"0", "1", "2"})]
    assert scheduler.stats.num_stored == 2


@pytest.mark.parametrize(("tail_tokens", "num_phases"), [(0, 2), (6, 2), (5, 4)])
def test_how_many_tokens_a_tail_may_have(tail_tokens: int, num_phases: int) -> None:
    scheduler = with_prompts(8, 8, 6, max_tokens=20, tier_blocks=2, max_num_seqs=1,
                             options={"tail": True, "tail_tokens": tail_tokens})  # fmt: skip
    assert len(phases(scheduler)) == num_phases


def test_a_tail_waits_until_the_tier_is_drained() -> None:
    """The last prompt would fit beside the first request; the second, in the tier, does not."""
    scheduler = with_prompts(16, 16, max_tokens=9, tier_blocks=4, num_blocks=7,
                             options={"tail": True})  # fmt: skip
    add(scheduler, "last", prompt_of(2, 900), max_tokens=2)
    order: list[str] = []
    while scheduler.num_unfinished:
        step = step_of(scheduler)
        order += [f"load {load.request_id}" for load in step.loads]
        order += ["last"] * ("last" in step.appended_blocks)
        update(scheduler, step, *([5] * sum(row.samples for row in step.rows)))
        transferred(scheduler, *step.stores, *step.loads)
    assert order == ["load 0", "load 1", "last"]


def loaded_first(options: dict[str, Any]) -> str:
    scheduler = make_tiered(options, max_num_seqs=2, num_blocks=16)
    for name, max_tokens in (("short", 2), ("long", 9)):
        add(scheduler, name, prompt_of(6, 10 * max_tokens), max_tokens=max_tokens)
    step = step_of(scheduler)
    update(scheduler, step, 5, 5)
    transferred(scheduler, *step.stores)
    return step_of(scheduler).loads[0].request_id


def test_the_longest_answers_are_loaded_first_once_no_prompt_waits() -> None:
    assert loaded_first({"tail": True}) == "long"
    assert loaded_first({"tail": False}) == "short"


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"switch": "never"}, "switch='never': expected one of minimal, prefill-first, decode-fir"),
        ({"low_mark": 1.0}, "low_mark=1.0: expected a fraction"),
        ({"low_mark": float("nan")}, "low_mark=nan: expected a fraction"),
        ({"low_mark": True}, "low_mark=True: expected a fraction"),
        ({"load_watermark": -0.1}, "load_watermark=-0.1: expected a fraction"),
        ({"load_watermark": "0.1"}, "load_watermark='0.1': expected a fraction"),
        ({"tail": 1}, "tail=1: expected True or False"),
        ({"tail_tokens": -1}, "tail_tokens=-1: expected tokens, or 0"),
        ({"tail_tokens": False}, "tail_tokens=False: expected tokens, or 0"),
        ({"lowmark": 0.1}, "no option 'lowmark'. Did you mean 'low_mark'"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        policies.make("seesaw", options)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["seesaw", "seesaw-cost"])
def test_it_needs_a_tier(name: str) -> None:
    scheduler = Scheduler(SchedulerConfig(**CONFIG), policies.make(name, {}))
    add(scheduler, "a", [1])
    with pytest.raises(AssertionError, match="needs a host tier"):
        scheduler.schedule()


def test_continuous_has_no_use_for_one() -> None:
    tiered = make_tiered()
    scheduler = Scheduler(tiered.config, policies.make("continuous", {}))
    add(scheduler, "a", [1])
    with pytest.raises(AssertionError, match="no use for a host tier"):
        scheduler.schedule()
