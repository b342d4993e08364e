"""Which tokens of a prompt are computed, and which are shared with requests before it."""

from __future__ import annotations

import pytest

from tests.scheduler.harness import (
    EOS,
    add,
    make_scheduler,
    prompt_of,
    rows_of,
    step_of,
    two_in_a_full_pool,
    update,
)


def test_a_prompt_admitted_in_the_same_step_shares_what_the_one_before_computes() -> None:
    scheduler = make_scheduler()
    add(scheduler, "a", prompt_of(11))
    second = add(scheduler, "b", prompt_of(11))
    step = step_of(scheduler)
    assert rows_of(step) == [("a", 0, 11, True), ("b", 8, 3, True)]
    assert step.appended_blocks["a"][:2] == step.appended_blocks["b"][:2]
    assert step.appended_blocks["a"][2] != step.appended_blocks["b"][2]
    assert (second.num_cached_tokens, scheduler.stats.num_cached_tokens) == (8, 8)


def test_what_is_not_planned_yet_is_not_shared() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=7)
    add(scheduler, "a", prompt_of(11))
    add(scheduler, "b", [*prompt_of(8), 1, 2, 3])
    update(scheduler, step_of(scheduler))
    assert rows_of(step_of(scheduler)) == [("a", 7, 4, True), ("b", 8, 3, True)]


@pytest.mark.parametrize(("num_prompt", "cached"), [(1, 0), (4, 0), (5, 4), (8, 4), (9, 8)])
def test_at_least_one_token_is_run_for_its_logits(num_prompt: int, cached: int) -> None:
    scheduler = make_scheduler()
    add(scheduler, "a", prompt_of(12), max_tokens=1)
    update(scheduler, step_of(scheduler), 5)
    request = add(scheduler, "b", prompt_of(num_prompt), max_tokens=1)
    assert rows_of(step_of(scheduler)) == [("b", cached, num_prompt - cached, True)]
    assert request.num_cached_tokens == cached


def test_an_answer_is_shared_with_a_prompt_that_continues_it() -> None:
    scheduler = make_scheduler(max_steps_in_flight=1)
    add(scheduler, "a", prompt_of(3), max_tokens=6)
    for token in range(6):
        update(scheduler, step_of(scheduler), 20 + token)
    follow_up = [*prompt_of(3), 20, 21, 22, 23, 24, 25, 1]
    add(scheduler, "b", follow_up, max_tokens=1)
    assert rows_of(step_of(scheduler)) == [("b", 8, 2, True)]


def test_tokens_drawn_past_a_stop_are_never_shared() -> None:
    scheduler = make_scheduler(max_steps_in_flight=4)
    add(scheduler, "a", prompt_of(3))
    steps = [step_of(scheduler) for _ in range(4)]
    for step, token in zip(steps, (EOS, 21, 22, 23), strict=True):
        update(scheduler, step, token)
    add(scheduler, "b", [*prompt_of(3), EOS, 21, 22, 23, 24, 25], max_tokens=1)
    assert rows_of(step_of(scheduler))[0] == ("b", 4, 5, True)


def test_sharing_can_be_turned_off() -> None:
    scheduler = make_scheduler(enable_prefix_caching=False)
    add(scheduler, "a", prompt_of(11))
    add(scheduler, "b", prompt_of(11))
    assert rows_of(step_of(scheduler)) == [("a", 0, 11, True), ("b", 0, 11, True)]
    assert scheduler.stats.num_cached_tokens == 0


def test_what_a_request_finds_again_after_it_yielded_is_no_saving() -> None:
    scheduler, _, young = two_in_a_full_pool(max_steps_in_flight=1)
    step = step_of(scheduler)
    scheduler.finish("old", "abort")
    update(scheduler, step, 5)
    step = step_of(scheduler)
    assert rows_of(step) == [("young", 4, 4, True)], "its first block was still there"
    assert (young.num_cached_tokens, scheduler.stats.num_cached_tokens) == (0, 0)
