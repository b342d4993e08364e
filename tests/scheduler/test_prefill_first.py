"""Policy `prefill-first`: whole prompts while one can be admitted, else decodes."""

from __future__ import annotations

from typing import Any

from seesaw.scheduler.output import SchedulerOutput
from seesaw.scheduler.scheduler import Scheduler
from tests.scheduler.harness import (
    add,
    assert_all_free,
    make_scheduler,
    prompt_of,
    run_all,
    run_step,
    sizes_of,
    step_of,
)


def make(block_watermark: float = 0.01, **settings: Any) -> Scheduler:
    options = {"block_watermark": block_watermark}
    return make_scheduler(options, policy="prefill-first", **settings)


def test_decodes_wait_while_prompts_come() -> None:
    scheduler = make()
    add(scheduler, "a", prompt_of(4))
    assert sizes_of(run_step(scheduler)) == {"a": 4}
    assert sizes_of(run_step(scheduler)) == {"a": 1}
    add(scheduler, "b", prompt_of(6, 200))
    add(scheduler, "c", prompt_of(3, 300))
    assert sizes_of(run_step(scheduler)) == {"b": 6, "c": 3}
    assert sizes_of(run_step(scheduler)) == {"a": 1, "b": 1, "c": 1}


def test_a_prompt_that_does_not_fit_the_rest_of_a_step_is_not_cut() -> None:
    scheduler = make(max_num_batched_tokens=10)
    for name, length in (("a", 6), ("b", 5), ("c", 1)):
        add(scheduler, name, prompt_of(length, ord(name)))
    assert sizes_of(run_step(scheduler)) == {"a": 6}, "nor does c go before b"
    assert sizes_of(run_step(scheduler)) == {"b": 5, "c": 1}


def test_a_prompt_longer_than_a_step_is_cut_and_others_join_its_end() -> None:
    scheduler = make(max_num_batched_tokens=10)
    add(scheduler, "first", prompt_of(2, 500))
    run_step(scheduler)
    add(scheduler, "long", prompt_of(25))
    add(scheduler, "short", prompt_of(5, 300))
    steps = [sizes_of(run_step(scheduler)) for _ in range(4)]
    assert steps == [{"long": 10}, {"long": 10}, {"long": 5, "short": 5}, dict.fromkeys(
        ("first", "long", "short"), 1)]  # fmt: skip


def test_decodes_go_on_when_no_more_may_run() -> None:
    scheduler = make(max_num_seqs=1)
    add(scheduler, "a", prompt_of(4), max_tokens=3, ignore_eos=True)
    add(scheduler, "b", prompt_of(4, 200), max_tokens=1)
    steps = [sizes_of(step) for step in run_all(scheduler)]
    assert steps == [{"a": 4}, {"a": 1}, {"a": 1}, {"b": 4}]
    assert_all_free(scheduler)


def test_blocks_above_the_watermark_are_for_new_prompts() -> None:
    scheduler = make(0.25, num_blocks=8)
    add(scheduler, "a", prompt_of(16), max_tokens=4)
    add(scheduler, "b", prompt_of(12, 200), max_tokens=4)
    assert sizes_of(run_step(scheduler)) == {"a": 16}, "two of four free blocks stay free"
    assert sizes_of(run_step(scheduler)) == {"a": 1}


def test_stages_have_prompts_or_shares_of_decodes() -> None:
    scheduler = make(num_stages=2)
    for name in "abcd":
        add(scheduler, name, prompt_of(2, 10 * ord(name)))
    run_step(scheduler)
    groups: list[SchedulerOutput] = [step_of(scheduler), step_of(scheduler)]
    assert [sizes_of(step) for step in groups] == [{"a": 1, "b": 1}, {"c": 1, "d": 1}]
    add(scheduler, "e", prompt_of(9, 7))
    assert sizes_of(step_of(scheduler)) == {"e": 9}, "one step more than stages is in flight"
