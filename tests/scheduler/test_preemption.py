"""Who yields when no block is free, what workers hear of it, and how it goes on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.scheduler.harness import (
    EOS,
    add,
    assert_all_free,
    ids_of_rows,
    make_scheduler,
    prompt_of,
    rows_of,
    run_all,
    run_step,
    sizes_of,
    step_of,
    two_in_a_full_pool,
    update,
)


def test_the_youngest_yields_and_is_computed_again() -> None:
    scheduler, old, young = two_in_a_full_pool(max_steps_in_flight=1)
    step = step_of(scheduler)
    assert step.preempted == ["young"]
    assert rows_of(step) == [("old", 8, 1, True)]
    assert scheduler.num_waiting == 1
    token = 10
    while old.finish_reason is None:
        update(scheduler, step, token)
        step, token = step_of(scheduler), token + 1
    assert step.finished == ["old"]
    assert step.new_requests == [], "workers know it already"
    assert len(step.appended_blocks["young"]) == 2, "a new table"
    assert sum(row.num_tokens for row in step.rows) + young.num_cached_tokens <= 8
    assert young.tokens == [*prompt_of(7, 200), 6], "what it drew is kept"
    assert scheduler.stats.num_preemptions == young.num_preemptions == 1


def test_who_yields_with_tokens_pending_keeps_them() -> None:
    scheduler = make_scheduler(num_blocks=4, max_steps_in_flight=2)
    old = add(scheduler, "old", prompt_of(7), max_tokens=9)
    young = add(scheduler, "young", prompt_of(7, 200), max_tokens=9)
    first = step_of(scheduler)
    second = step_of(scheduler)
    update(scheduler, first, 5, 6)
    assert scheduler.schedule() is None, "the young one yields; its blocks are still in use"
    assert scheduler.num_waiting == 0
    assert scheduler.kv_usage == 1
    update(scheduler, second, 15, 16)
    assert scheduler.num_waiting == 1
    third = step_of(scheduler)
    assert third.preempted == ["young"], "said late, since the step in which it yielded was empty"
    assert rows_of(third) == [("old", 8, 1, True)]
    assert old.output_token_ids == [5, 15]
    assert young.output_token_ids == [6, 16]


def test_nobody_else_yields_while_blocks_are_on_their_way_back() -> None:
    scheduler = make_scheduler(num_blocks=6, max_steps_in_flight=3)
    for index, name in enumerate(("old", "middle", "young")):
        add(scheduler, name, prompt_of(7, 100 * (index + 1)), max_tokens=9)
    first, second = step_of(scheduler), step_of(scheduler)
    assert [scheduler.schedule() for _ in range(3)] == [None] * 3
    assert (scheduler.stats.num_preemptions, scheduler.num_running) == (1, 2)
    update(scheduler, first, 5, 6, 7)
    update(scheduler, second, 15, 16, 17)
    third = step_of(scheduler)
    assert third.preempted == ["young"]
    assert ids_of_rows(third) == ["old", "middle"]


def test_who_yields_may_turn_out_to_have_ended() -> None:
    scheduler = make_scheduler(num_blocks=4, max_steps_in_flight=2)
    add(scheduler, "old", prompt_of(7), max_tokens=9)
    young = add(scheduler, "young", prompt_of(7, 200), max_tokens=9)
    first, second = step_of(scheduler), step_of(scheduler)
    update(scheduler, first, 5, 6)
    assert scheduler.schedule() is None
    update(scheduler, second, 15, EOS)
    assert young.finish_reason == "stop"
    third = step_of(scheduler)
    assert (third.finished, third.preempted) == (["young"], [])


def test_who_yields_and_is_aborted_before_the_next_step_is_only_finished() -> None:
    scheduler = make_scheduler(num_blocks=4, max_steps_in_flight=2)
    add(scheduler, "old", prompt_of(7), max_tokens=9)
    add(scheduler, "young", prompt_of(7, 200), max_tokens=9)
    first, second = step_of(scheduler), step_of(scheduler)
    update(scheduler, first, 5, 6)
    assert scheduler.schedule() is None
    update(scheduler, second, 15, 16)
    assert scheduler.num_waiting == 1, "it waits for its second turn"
    scheduler.finish("young", "abort")
    third = step_of(scheduler)
    assert (third.finished, third.preempted) == (["young"], [])


def test_nobody_new_comes_in_while_someone_had_to_yield() -> None:
    scheduler, _, _ = two_in_a_full_pool()
    add(scheduler, "new", [1], max_tokens=1)
    assert ids_of_rows(step_of(scheduler)) == ["old"]


def test_who_yielded_goes_before_those_who_never_ran() -> None:
    scheduler, _, _ = two_in_a_full_pool(max_steps_in_flight=1)
    add(scheduler, "new", [1], max_tokens=1)
    step = step_of(scheduler)
    scheduler.finish("old", "abort")
    update(scheduler, step, 5)
    assert ids_of_rows(step_of(scheduler)) == ["young", "new"]


def test_blocks_are_kept_back_from_new_requests_only() -> None:
    scheduler = make_scheduler({"block_watermark": 0.5}, num_blocks=8, max_steps_in_flight=1)
    old = add(scheduler, "old", prompt_of(20), max_tokens=12)  # may take all: nobody else runs
    add(scheduler, "new", prompt_of(4, 200), max_tokens=4)  # one block of the three left
    while old.finish_reason is None:
        step = step_of(scheduler)
        assert ids_of_rows(step) == ["old"]
        update(scheduler, step, 5)
    assert scheduler.stats.num_preemptions == 0
    assert ids_of_rows(step_of(scheduler)) == ["new"]


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        ("prefill-first", {"block_watermark": 0.01}),
        ("sarathi-serve", {"token_budget": 11, "batches": "stall-free"}),
        ("sarathi-serve", {"token_budget": 11, "batches": "hybrid-only"}),
        ("sarathi-serve", {"token_budget": 11, "batches": "chunk-only"}),
    ],
)
def test_who_yields_does_not_take_back_its_blocks_before_they_are_used(
    policy: str, options: dict[str, Any]
) -> None:
    """The step in flight uses them: until it is back the older one waits, and so do prompts."""
    scheduler = make_scheduler(options, policy=policy, num_blocks=4, enable_prefix_caching=False)
    for name, length in (("a", 7), ("b", 4)):
        add(scheduler, name, prompt_of(length, ord(name)), max_tokens=6, ignore_eos=True)
    run_step(scheduler)
    in_flight = step_of(scheduler)
    assert sizes_of(in_flight) == {"a": 1, "b": 1}
    assert scheduler.schedule() is None, "a needs a third block, and b yields"
    update(scheduler, in_flight, 5, 5)
    # Two blocks are free, as many as b needs.
    assert sizes_of(run_step(scheduler)) == {"a": 1}
    run_all(scheduler)
    assert_all_free(scheduler)
