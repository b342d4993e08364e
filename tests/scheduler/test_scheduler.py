"""What single steps and updates do, case by case; whole runs are in `test_properties`."""

from __future__ import annotations

from typing import Any

import pytest

from seesaw.errors import RequestError
from seesaw.sampling_params import SamplingParams
from seesaw.scheduler.output import ModelOutput, TokenLogprobs
from seesaw.scheduler.scheduler import Update
from tests.scheduler.harness import (
    EOS,
    add,
    ids,
    ids_of_rows,
    make_scheduler,
    prompt_of,
    rows_of,
    step_of,
    update,
)

# -- what can run at all --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_prompt", "sampling", "message"),
    [
        (0, {}, "the prompt is empty"),
        (64, {}, "the prompt has 64 tokens; .* max_model_len=64 allows 63"),
        (65, {"max_tokens": 1}, "the prompt has 65 tokens"),
        (30, {}, "may need 16 KV blocks, there are 8"),
        (30, {"max_tokens": 4}, "may need 9 KV blocks, there are 8"),
    ],
)
def test_requests_that_can_never_run_are_refused(
    num_prompt: int, sampling: dict[str, Any], message: str
) -> None:
    scheduler = make_scheduler(num_blocks=8)
    with pytest.raises(RequestError, match=message):
        scheduler.validate(num_prompt, SamplingParams(**sampling))


def test_the_largest_request_that_is_accepted_runs_to_its_end() -> None:
    """The KV of the last token is never needed: 30 + 3 tokens fit 8 blocks of 4."""
    scheduler = make_scheduler(num_blocks=8)
    request = add(scheduler, "a", prompt_of(30), max_tokens=3)
    for token in (5, 6, 7):
        update(scheduler, step_of(scheduler), token)
    assert (request.output_token_ids, request.finish_reason) == ([5, 6, 7], "length")
    assert scheduler.kv_usage == 0


def test_an_id_in_use_is_refused() -> None:
    scheduler = make_scheduler()
    add(scheduler, "a", [1])
    with pytest.raises(AssertionError, match="known already"):
        add(scheduler, "a", [1])


def test_nothing_to_do() -> None:
    scheduler = make_scheduler()
    assert scheduler.schedule() is None
    assert scheduler.finish("nobody", "abort") is None
    assert (scheduler.num_unfinished, scheduler.kv_usage) == (0, 0)


# -- rows -----------------------------------------------------------------------------------------


def test_a_long_prompt_runs_in_chunks_and_samples_with_the_last() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=8)
    add(scheduler, "a", prompt_of(19), max_tokens=2)
    rows = []
    for tokens in ((), (), (5,), (6,)):
        step = step_of(scheduler)
        rows += rows_of(step)
        update(scheduler, step, *tokens)
    assert rows == [("a", 0, 8, False), ("a", 8, 8, False), ("a", 16, 3, True), ("a", 19, 1, True)]


def test_decodes_go_before_prompts_and_the_budget_is_shared() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=10)
    add(scheduler, "a", prompt_of(3))
    first = step_of(scheduler)
    add(scheduler, "b", prompt_of(6, 200))
    add(scheduler, "c", prompt_of(9, 300))
    second = step_of(scheduler)
    assert rows_of(second) == [("a", 3, 1, True), ("b", 0, 6, True), ("c", 0, 3, False)]
    update(scheduler, first, 5)
    update(scheduler, second, 6, 7)
    assert rows_of(step_of(scheduler)) == [("a", 4, 1, True), ("b", 6, 1, True), ("c", 3, 6, True)]


def test_chunks_are_limited_by_the_option() -> None:
    scheduler = make_scheduler({"max_prefill_chunk": 3})
    add(scheduler, "a", prompt_of(7))
    add(scheduler, "b", prompt_of(2, 200))
    assert rows_of(step_of(scheduler)) == [("a", 0, 3, False), ("b", 0, 2, True)]


def test_no_more_requests_run_than_allowed() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    for index in range(3):
        add(scheduler, str(index), prompt_of(2, 10 * (index + 1)), max_tokens=1)
    first = step_of(scheduler)
    assert ids_of_rows(first) == ["0", "1"]
    assert (scheduler.num_running, scheduler.num_waiting) == (2, 1)
    update(scheduler, first, 5, 5)
    assert ids_of_rows(step_of(scheduler)) == ["2"]


def test_the_first_step_tells_all_of_a_request_and_later_ones_only_new_blocks() -> None:
    scheduler = make_scheduler()
    request = add(scheduler, "a", prompt_of(4), temperature=0.5)
    first = step_of(scheduler)
    (new,) = first.new_requests
    assert (new.request_id, new.prompt_token_ids, new.seed) == ("a", prompt_of(4), 7)
    assert (new.sampling, new.eos_token_ids) == (request.sampling, (EOS,))
    assert len(first.appended_blocks["a"]) == 1
    update(scheduler, first, 5)
    second = step_of(scheduler)
    assert second.new_requests == []
    assert len(second.appended_blocks["a"]) == 1, "position 4 needs a second block"
    update(scheduler, second, 5)
    assert step_of(scheduler).appended_blocks == {}


# -- steps in flight ------------------------------------------------------------------------------


def test_steps_are_planned_on_tokens_that_are_still_being_drawn() -> None:
    scheduler = make_scheduler(max_steps_in_flight=3)
    add(scheduler, "a", prompt_of(3))
    steps = [step_of(scheduler) for _ in range(3)]
    assert [rows_of(step) for step in steps] == [
        [("a", 0, 3, True)], [("a", 3, 1, True)], [("a", 4, 1, True)],
    ]  # fmt: skip
    assert scheduler.schedule() is None, "three are in flight"
    update(scheduler, steps[0], 5)
    assert rows_of(step_of(scheduler)) == [("a", 5, 1, True)]


def test_no_step_is_planned_past_the_last_token() -> None:
    scheduler = make_scheduler(max_steps_in_flight=4)
    add(scheduler, "a", prompt_of(3), max_tokens=2)
    steps = [step_of(scheduler), step_of(scheduler)]
    assert scheduler.schedule() is None, "both tokens are being drawn"
    update(scheduler, steps[0], 5)
    assert ids(update(scheduler, steps[1], 6).finished) == ["a"]
    assert scheduler.stats.num_discarded_tokens == 0


def test_tokens_drawn_past_a_stop_are_dropped_and_blocks_kept_until_then() -> None:
    scheduler = make_scheduler(max_steps_in_flight=3)
    request = add(scheduler, "a", prompt_of(3))
    steps = [step_of(scheduler) for _ in range(3)]
    assert ids(update(scheduler, steps[0], EOS).finished) == ["a"]
    assert scheduler.num_unfinished == 0
    for step in steps[1:]:
        assert scheduler.kv_usage > 0, "steps in flight still write to its blocks"
        assert update(scheduler, step, 9) == Update()
    assert request.output_token_ids == [EOS]
    assert scheduler.stats.num_discarded_tokens == 2
    assert scheduler.kv_usage == 0


def test_blocks_come_back_with_the_last_step_that_uses_them() -> None:
    scheduler = make_scheduler(num_blocks=16)
    add(scheduler, "a", prompt_of(12), max_tokens=1)
    first = step_of(scheduler)
    add(scheduler, "b", prompt_of(3, 200))
    second = step_of(scheduler)
    assert ids_of_rows(second) == ["b"]
    update(scheduler, first, 5)
    assert scheduler.kv_usage == 1 / 16, "only b holds a block, though its step is in flight"


def test_updates_out_of_order_wait_for_the_tokens_before_them() -> None:
    scheduler = make_scheduler(max_steps_in_flight=3)
    request = add(scheduler, "a", prompt_of(3), logprobs=0)
    steps = [step_of(scheduler) for _ in range(3)]

    def drawn(index: int) -> ModelOutput:
        entry = TokenLogprobs(-float(index), 1, [], [])
        return ModelOutput(steps[index].step_id, [10 + index], [entry])

    assert scheduler.update(drawn(2)) == Update()
    assert scheduler.update(drawn(1)) == Update()
    assert ids(scheduler.update(drawn(0)).advanced) == ["a"]
    assert request.output_token_ids == [10, 11, 12]
    assert request.logprobs is not None
    assert [entry.sampled for entry in request.logprobs if entry] == [0.0, -1.0, -2.0]


def test_a_stop_drops_tokens_that_arrived_before_it() -> None:
    scheduler = make_scheduler(max_steps_in_flight=3)
    request = add(scheduler, "a", prompt_of(3))
    steps = [step_of(scheduler) for _ in range(3)]
    update(scheduler, steps[2], 12)
    update(scheduler, steps[0], EOS)
    update(scheduler, steps[1], 11)
    assert request.output_token_ids == [EOS]
    assert scheduler.stats.num_discarded_tokens == 2


def test_an_abort_drops_tokens_that_arrived_out_of_order() -> None:
    scheduler = make_scheduler(max_steps_in_flight=3)
    request = add(scheduler, "a", prompt_of(3))
    steps = [step_of(scheduler) for _ in range(3)]
    update(scheduler, steps[1], 11)
    assert scheduler.finish("a", "abort") is request
    update(scheduler, steps[2], 12)
    update(scheduler, steps[0], 10)
    assert request.output_token_ids == []
    assert scheduler.stats.num_discarded_tokens == 3


def test_an_update_for_a_step_that_is_not_in_flight_is_an_error() -> None:
    scheduler = make_scheduler()
    add(scheduler, "a", prompt_of(3))
    step = step_of(scheduler)
    update(scheduler, step, 5)
    with pytest.raises(KeyError):
        update(scheduler, step, 5)


def test_an_update_with_too_few_tokens_is_an_error() -> None:
    scheduler = make_scheduler()
    add(scheduler, "a", prompt_of(3))
    step = step_of(scheduler)
    with pytest.raises(ValueError, match="shorter"):
        update(scheduler, step)


# -- how requests end -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampling", "drawn", "kept", "reason", "stop_reason"),
    [
        ({"max_tokens": 1}, [5], 1, "length", None),
        ({"max_tokens": 1}, [EOS], 1, "stop", None),
        ({"max_tokens": 3}, [5, 6, 7], 3, "length", None),
        ({}, [5, EOS], 2, "stop", None),
        ({"ignore_eos": True, "max_tokens": 3}, [EOS, EOS, EOS], 3, "length", None),
        ({"stop_token_ids": [9]}, [5, 9], 2, "stop", 9),
        ({"stop_token_ids": [EOS]}, [EOS], 1, "stop", None),
        ({"stop_token_ids": [EOS], "ignore_eos": True}, [EOS], 1, "stop", EOS),
        ({"min_tokens": 2, "max_tokens": 5}, [EOS, EOS], 2, "stop", None),
        ({"min_tokens": 3, "max_tokens": 3}, [EOS, 9, 5], 3, "length", None),
        ({"min_tokens": 1, "stop_token_ids": [9]}, [9], 1, "stop", 9),
        ({}, [5] * 61, 61, "length", None),  # max_model_len
    ],
)
def test_finish_reasons(
    sampling: dict[str, Any], drawn: list[int], kept: int, reason: str, stop_reason: int | None
) -> None:
    scheduler = make_scheduler()
    request = add(scheduler, "a", prompt_of(3), **sampling)
    for token in drawn:
        assert request.finish_reason is None, "ended early"
        update(scheduler, step_of(scheduler), token)
    assert request.output_token_ids == drawn[:kept]
    assert (request.finish_reason, request.stop_reason) == (reason, stop_reason)
    assert scheduler.num_unfinished == 0


def test_a_stop_from_outside() -> None:
    scheduler = make_scheduler()
    request = add(scheduler, "a", prompt_of(3))
    first, second = step_of(scheduler), step_of(scheduler)
    update(scheduler, first, 5)
    assert scheduler.finish("a", "stop", "###") is request
    assert (request.finish_reason, request.stop_reason) == ("stop", "###")
    assert scheduler.finish("a", "abort") is None, "it has ended"
    update(scheduler, second, 6)
    assert request.output_token_ids == [5]
    assert scheduler.stats.num_discarded_tokens == 1


def test_workers_forget_a_request_with_the_next_step() -> None:
    scheduler = make_scheduler()
    add(scheduler, "a", prompt_of(3), max_tokens=1)
    update(scheduler, step_of(scheduler), 5)
    add(scheduler, "b", prompt_of(3), max_tokens=1)
    assert step_of(scheduler).finished == ["a"]


def test_workers_hear_nothing_of_a_request_aborted_before_it_ran() -> None:
    scheduler = make_scheduler()
    add(scheduler, "a", prompt_of(3))
    scheduler.finish("a", "abort")
    assert (scheduler.num_waiting, scheduler.num_unfinished) == (0, 0)
    add(scheduler, "b", prompt_of(3))
    step = step_of(scheduler)
    assert step.finished == []
    assert [new.request_id for new in step.new_requests] == ["b"]


def test_an_id_can_be_used_again_once_its_blocks_are_back() -> None:
    scheduler = make_scheduler()
    add(scheduler, "a", prompt_of(3), max_tokens=1)
    update(scheduler, step_of(scheduler), 5)
    add(scheduler, "a", prompt_of(3), max_tokens=1)
    step = step_of(scheduler)
    assert step.finished == ["a"]
    assert [new.request_id for new in step.new_requests] == ["a"]


# -- debug ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("debug", [True, False])
def test_a_debug_run_poisons_freed_blocks_that_nobody_can_find_again(debug: bool) -> None:
    scheduler = make_scheduler(debug=debug)
    add(scheduler, "a", prompt_of(6), max_tokens=1)
    first = step_of(scheduler)
    update(scheduler, first, 5)
    add(scheduler, "b", [1], max_tokens=1)
    second = step_of(scheduler)
    assert first.poison_blocks == []
    assert second.poison_blocks == (first.appended_blocks["a"][1:] if debug else [])
    update(scheduler, second, 5)


def test_check_finds_a_block_that_leaked() -> None:
    scheduler = make_scheduler()
    request = add(scheduler, "a", prompt_of(6))
    step_of(scheduler)
    request.blocks.pop()
    with pytest.raises(AssertionError, match="0 tables, 1 holders"):
        scheduler.check()
