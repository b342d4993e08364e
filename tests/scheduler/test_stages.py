"""Pipelines: what waits for a token, what the first stage is told, how work is shared out."""

from __future__ import annotations

import pytest

from tests.scheduler.harness import (
    add,
    ids_of_rows,
    make_scheduler,
    make_tiered,
    prompt_of,
    rows_of,
    step_of,
    transferred,
    update,
)


def test_a_token_that_is_being_drawn_is_waited_for_and_then_told() -> None:
    scheduler = make_scheduler(num_stages=2)
    add(scheduler, "a", prompt_of(3))
    first = step_of(scheduler)
    assert scheduler.schedule() is None, "only the last stage will know it"
    update(scheduler, first, 5)
    second = step_of(scheduler)
    assert (rows_of(second), second.known_tokens) == ([("a", 3, 1, True)], {"a": (3, [5])})
    update(scheduler, second, 6)
    assert step_of(scheduler).known_tokens == {"a": (4, [6])}


def test_chunks_of_one_prompt_follow_one_another_through_the_stages() -> None:
    scheduler = make_scheduler(num_stages=3, max_num_batched_tokens=4)
    add(scheduler, "a", prompt_of(20))
    steps = [step_of(scheduler) for _ in range(4)]
    assert [rows_of(step)[0][1:3] for step in steps] == [(0, 4), (4, 4), (8, 4), (12, 4)]
    assert all(step.known_tokens == {} for step in steps)
    assert scheduler.schedule() is None, "one more than stages"


@pytest.mark.parametrize(("stages", "most"), [(1, 4), (2, 3), (4, 5)])
def test_steps_in_flight(stages: int, most: int) -> None:
    scheduler = make_scheduler(num_stages=stages, max_steps_in_flight=4, max_num_batched_tokens=1)
    add(scheduler, "a", prompt_of(20))
    num_steps = 0
    while scheduler.schedule() is not None:
        num_steps += 1
    assert num_steps == most


@pytest.mark.parametrize(
    ("num_requests", "stages", "groups"),
    [(1, 2, [1]), (2, 2, [1, 1]), (5, 2, [3, 2]), (6, 4, [2, 2, 1, 1]), (3, 4, [1, 1, 1])],
)
def test_residents_are_shared_out_over_the_stages(
    num_requests: int, stages: int, groups: list[int]
) -> None:
    scheduler = make_scheduler(num_stages=stages)
    for index in range(num_requests):
        add(scheduler, str(index), prompt_of(2, 10 * (index + 1)))
    update(scheduler, step_of(scheduler), *([5] * num_requests))
    found = []
    while (step := scheduler.schedule()) is not None:
        found.append(ids_of_rows(step))
    assert [len(group) for group in found] == groups
    assert [name for group in found for name in group] == [
        str(index) for index in range(num_requests)
    ]


def test_a_group_that_comes_back_takes_in_who_is_new_up_to_an_equal_share() -> None:
    scheduler = make_scheduler(num_stages=2)
    for name in "ab":
        add(scheduler, name, prompt_of(2, ord(name)))
    update(scheduler, step_of(scheduler), 5, 5)
    first, second = step_of(scheduler), step_of(scheduler)
    assert [ids_of_rows(first), ids_of_rows(second)] == [["a"], ["b"]]
    for name in "cdef":
        add(scheduler, name, prompt_of(2, ord(name)))
    prompts = step_of(scheduler)
    update(scheduler, prompts, 5, 5, 5, 5)
    assert scheduler.schedule() is None, "both stages have their group"
    update(scheduler, first, 6)
    assert ids_of_rows(step_of(scheduler)) == ["a", "c", "d"]
    update(scheduler, second, 6)
    assert ids_of_rows(step_of(scheduler)) == ["b", "e", "f"]


def test_who_yields_in_a_pipeline_may_be_anywhere_in_the_line() -> None:
    scheduler = make_scheduler(num_stages=2, num_blocks=4, enable_prefix_caching=False)
    for name in "ab":
        add(scheduler, name, prompt_of(8, 100 * ord(name)), max_tokens=8)
    update(scheduler, step_of(scheduler), 5, 5)
    step = step_of(scheduler)
    assert (ids_of_rows(step), step.preempted) == (["a"], ["b"])


# -- prompts of equal size ------------------------------------------------------------------------


def chunks(stages: int, lengths: list[int], budget: int, prefill_blocks: int = 99) -> list[int]:
    """Tokens of each step until nothing can be issued."""
    scheduler = make_tiered(
        stages=(stages, 1), max_num_batched_tokens=budget, prefill_blocks=prefill_blocks,
        tier_blocks=99, max_model_len=400, num_blocks=100,
    )  # fmt: skip
    for index, length in enumerate(lengths):
        add(scheduler, str(index), prompt_of(length, 1000 * index), max_tokens=2)
    found = []
    while (step := scheduler.schedule()) is not None and step.phase == "prefill":
        found.append(step.num_tokens)
        update(scheduler, step, *([5] * sum(row.samples for row in step.rows)))
    return found


@pytest.mark.parametrize(
    ("stages", "lengths", "steps"),
    [
        (1, [35], [10, 10, 10, 5]),
        (4, [35], [9, 9, 9, 8]),
        (4, [12, 1], [7, 6]),
        (4, [10], [10]),
        (4, [3], [3]),
        (4, [7, 7, 7], [7, 7, 7]),
        (2, [100], [10] * 10),
        (2, [65], [10, 10, 9, 9, 9, 9, 9]),
    ],
)
def test_prompts_are_cut_into_batches_of_equal_size(
    stages: int, lengths: list[int], steps: list[int]
) -> None:
    assert chunks(stages, lengths, budget=10) == steps


def test_only_prompts_that_fit_now_are_balanced() -> None:
    """12 and 8 tokens: the third prompt finds no blocks until the first is stored."""
    assert chunks(4, [12, 8, 8], budget=16, prefill_blocks=5) == [10, 10]


# -- two layouts ----------------------------------------------------------------------------------


def test_a_token_drawn_in_a_pipeline_is_told_in_the_other_layout_once() -> None:
    scheduler = make_tiered(stages=(2, 1))
    add(scheduler, "a", prompt_of(6))
    step = step_of(scheduler)
    assert step.stores != []
    transferred(scheduler, *step.stores)
    load = step_of(scheduler)
    assert load.reshard
    load = load if load.loads else step_of(scheduler)
    transferred(scheduler, *load.loads)
    assert scheduler.schedule() is None, "the first token is not known yet, though its KV is here"
    update(scheduler, step, 5)
    steps = [step_of(scheduler)]
    update(scheduler, load)
    steps.append(step_of(scheduler))
    assert [one.known_tokens for one in steps] == [{"a": (6, [5])}, {}]
    assert [rows_of(one) for one in steps] == [[("a", 6, 1, True)], [("a", 7, 1, True)]]


def test_tokens_of_one_stage_are_known_when_a_pipeline_decodes() -> None:
    scheduler = make_tiered(stages=(1, 2))
    add(scheduler, "a", prompt_of(6))
    step = step_of(scheduler)
    transferred(scheduler, *step.stores)
    load = step_of(scheduler)
    load = load if load.loads else step_of(scheduler)
    transferred(scheduler, *load.loads)
    update(scheduler, step, 5)
    decode = step_of(scheduler)
    assert (rows_of(decode), decode.known_tokens) == ([("a", 6, 1, True)], {})
    update(scheduler, decode, 6)
    assert step_of(scheduler).known_tokens == {"a": (7, [6])}


def test_a_transition_is_issued_while_the_stages_are_full() -> None:
    """Four prompts are under way in a pipeline of three; the layout to come allows two steps."""
    scheduler = make_tiered(stages=(3, 1), max_num_batched_tokens=6)
    for index in range(4):
        add(scheduler, str(index), prompt_of(6, 100 * index))
    steps = [step_of(scheduler) for _ in range(4)]
    assert scheduler.schedule() is None, "enough steps are in flight"
    update(scheduler, steps[0], 5)
    transition = step_of(scheduler)
    assert (transition.phase, transition.reshard) == ("decode", True)
    assert scheduler.num_in_flight == 4
    transferred(scheduler, steps[0].stores[0])
    assert scheduler.schedule() is None, "as many as the pipeline allows"
    update(scheduler, steps[1], 5)
    assert len(step_of(scheduler).loads) == 1
    update(scheduler, steps[2], 5)
    transferred(scheduler, steps[1].stores[0])
    assert scheduler.schedule() is None, "two of the new layout"
