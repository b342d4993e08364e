"""Who yields when the decode pool is full: to the tier, or to be computed again."""

from __future__ import annotations

import pytest

from seesaw.scheduler.request import Request
from seesaw.scheduler.scheduler import Scheduler
from tests.scheduler.harness import (
    add,
    assert_all_free,
    ids_of_rows,
    make_tiered,
    prompt_of,
    rows_of,
    step_of,
    transferred,
    update,
)


def two_residents(tier_blocks: int) -> tuple[Scheduler, Request, Request]:
    """Both hold all four blocks of the decode pool; the next row of the older needs a fifth."""
    scheduler = make_tiered(
        {"load_watermark": 0.0}, num_blocks=4, tier_blocks=tier_blocks, max_steps_in_flight=1
    )
    old = add(scheduler, "old", prompt_of(8), max_tokens=8)
    young = add(scheduler, "young", prompt_of(7, 200), max_tokens=8)
    step = step_of(scheduler)
    update(scheduler, step, 5, 6)
    transferred(scheduler, *step.stores)
    step = step_of(scheduler)
    assert [load.request_id for load in step.loads] == ["old", "young"]
    update(scheduler, step)
    transferred(scheduler, *step.loads)
    return scheduler, old, young


def test_the_youngest_is_stored_back_and_comes_first() -> None:
    scheduler, old, young = two_residents(tier_blocks=16)
    other = add(scheduler, "other", prompt_of(4, 300), max_tokens=2)
    step = step_of(scheduler)
    assert (step.phase, ids_of_rows(step)) == ("prefill", ["other"])
    update(scheduler, step, 7)
    transferred(scheduler, *step.stores)
    step = step_of(scheduler)
    (store,) = step.stores
    assert (store.request_id, store.phase, store.num_tokens) == ("young", "decode", 7)
    assert rows_of(step) == [], "its blocks come back once they are copied"
    update(scheduler, step)
    assert scheduler.schedule() is None
    transferred(scheduler, store)
    token = 10
    while old.finish_reason is None:
        step = step_of(scheduler)
        assert (ids_of_rows(step), step.loads) == (["old"], [])
        update(scheduler, step, token)
        token += 1
    step = step_of(scheduler)
    load, second = step.loads
    assert (load.request_id, load.tier_blocks, load.num_tokens) == ("young", store.tier_blocks, 7)
    assert second.request_id == "other"
    update(scheduler, step)
    transferred(scheduler, load)
    assert rows_of(step_of(scheduler)) == [("young", 7, 1, True)]
    assert other.finish_reason is None
    assert (scheduler.stats.num_stored_back, scheduler.stats.num_preemptions) == (1, 0)
    assert young.tokens == [*prompt_of(7, 200), 6]


def test_where_the_tier_has_no_room_it_is_computed_again() -> None:
    scheduler, old, young = two_residents(tier_blocks=4)
    small = add(scheduler, "small", prompt_of(4, 300), max_tokens=2)
    large = add(scheduler, "large", prompt_of(10, 400), max_tokens=2)
    step = step_of(scheduler)  # the tier is drained, so they are prefilled: the tier is full
    assert (step.phase, ids_of_rows(step)) == ("prefill", ["small", "large"])
    update(scheduler, step, 7, 8)
    transferred(scheduler, *step.stores)
    step = step_of(scheduler)
    assert (step.phase, step.preempted, ids_of_rows(step)) == ("decode", ["young"], ["old"])
    assert step.loads == [], "nobody comes in where someone had to yield"
    assert scheduler.num_waiting == 1
    assert scheduler.stats.num_preemptions == 1
    assert young.output_token_ids == [6], "what it drew is kept"
    assert {old.finish_reason, small.finish_reason, large.finish_reason} == {None}


def test_who_draws_its_last_token_is_not_made_to_yield() -> None:
    scheduler = make_tiered({"load_watermark": 0.0}, num_blocks=4)
    add(scheduler, "old", prompt_of(7), max_tokens=8)
    add(scheduler, "young", prompt_of(7, 200), max_tokens=2)
    step = step_of(scheduler)
    update(scheduler, step, 5, 6)
    transferred(scheduler, *step.stores)
    step = step_of(scheduler)
    update(scheduler, step)
    transferred(scheduler, *step.loads)
    step = step_of(scheduler)
    assert ids_of_rows(step) == ["old", "young"]
    assert scheduler.schedule() is None, "the old one waits for the young one's blocks"
    update(scheduler, step, 5, 6)
    assert ids_of_rows(step_of(scheduler)) == ["old"]
    assert scheduler.stats.num_preemptions == scheduler.stats.num_stored_back == 0


@pytest.mark.parametrize(
    ("prefill_blocks", "tier_blocks", "num_other"), [(2, 3, 8), (16, 3, 8), (4, 5, 16)]
)
def test_who_outgrew_tier_or_prefill_pool_is_computed_again_in_the_decode_layout(
    prefill_blocks: int, tier_blocks: int, num_other: int
) -> None:
    """Both take each prompt, and not what it has grown to: four blocks and a token. Another request
    is in the tier when it yields."""
    scheduler = make_tiered(
        {"load_watermark": 0.0},
        num_blocks=9,
        prefill_blocks=prefill_blocks,
        tier_blocks=tier_blocks,
        max_num_seqs=2,
        max_steps_in_flight=1,
    )
    old = add(scheduler, "old", prompt_of(8), max_tokens=12)
    young = add(scheduler, "young", prompt_of(8, 200), max_tokens=12)
    add(scheduler, "other", prompt_of(num_other, 300), max_tokens=2)
    again: list[str] = []
    for _ in range(60):
        if not scheduler.num_unfinished:
            break
        step = step_of(scheduler)
        again += [step.phase for row in rows_of(step) if row[0] == "young" and row[1:3] == (0, 17)]
        update(scheduler, step, *([5] * sum(row.samples for row in step.rows)))
        transferred(scheduler, *step.stores, *step.loads)
    assert again == ["decode"]
    assert scheduler.stats.num_transitions == 1, "no prefill phase could take it"
    assert (old.output_token_ids, young.output_token_ids) == ([5] * 12, [5] * 12)
    assert scheduler.stats.num_preemptions == 1
    assert_all_free(scheduler)
