"""A request's way through prefill pool, host tier and decode pool, case by case; whole runs are in
`test_tier_properties`."""

from __future__ import annotations

import pytest

from seesaw.errors import RequestError
from seesaw.sampling_params import SamplingParams
from seesaw.scheduler.output import SchedulerOutput, Store
from seesaw.scheduler.request import Request
from seesaw.scheduler.scheduler import Scheduler
from tests.scheduler.harness import (
    EOS,
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


def prefilled(scheduler: Scheduler, token: int = 5) -> tuple[SchedulerOutput, Store]:
    """The step that runs the only prompt, its token known, and the store that it begins."""
    step = step_of(scheduler)
    update(scheduler, step, token)
    return step, step.stores[0]


def resident(scheduler: Scheduler, num_prompt: int = 6, **sampling: object) -> Request:
    """The only request, in the decode pool, with one token known; no row yet."""
    request = add(scheduler, "a", prompt_of(num_prompt), **sampling)
    _, store = prefilled(scheduler)
    transferred(scheduler, store)
    step = step_of(scheduler)
    update(scheduler, step)
    transferred(scheduler, *step.loads)
    return request


# -- one request ----------------------------------------------------------------------------------


def test_a_prompt_is_prefilled_stored_loaded_and_decoded() -> None:
    scheduler = make_tiered(tier_block_size=8)
    request = add(scheduler, "a", prompt_of(9), max_tokens=3)
    first = step_of(scheduler)
    assert (first.phase, first.reshard, rows_of(first)) == ("prefill", False, [("a", 0, 9, True)])
    blocks = first.appended_blocks["a"]
    assert first.stores == [Store(0, "a", "prefill", blocks, [0, 1], 9)]
    update(scheduler, first, 5)
    assert scheduler.prefill_kv_usage == 3 / 16, "kept until it is copied"

    transition = step_of(scheduler)
    assert (transition.phase, transition.reshard, rows_of(transition)) == ("decode", True, [])
    assert scheduler.schedule() is None, "the copy is waited for"
    transferred(scheduler, first.stores[0])
    assert (scheduler.prefill_kv_usage, scheduler.num_tier_blocks_used) == (0, 2)

    load = step_of(scheduler)
    assert (load.reshard, rows_of(load)) == (False, [])
    ((number, name, tier_blocks, blocks, num_tokens, after),) = load.loads
    assert after == (), "nobody reads its blocks any more"
    assert (number, name, tier_blocks, len(blocks), num_tokens) == (1, "a", [0, 1], 3, 9)
    update(scheduler, transition)
    update(scheduler, load)
    assert scheduler.schedule() is None, "its KV is not there yet"
    transferred(scheduler, load.loads[0])
    assert scheduler.num_tier_blocks_used == 0

    for position, token in ((9, 6), (10, 7)):
        step = step_of(scheduler)
        assert rows_of(step) == [("a", position, 1, True)]
        assert step.known_tokens == {}, "with one stage all workers draw all tokens"
        update(scheduler, step, token)
    assert (request.output_token_ids, request.finish_reason) == ([5, 6, 7], "length")
    assert_all_free(scheduler)
    stats = scheduler.stats
    assert (stats.num_stored, stats.num_loaded, stats.num_stored_back) == (1, 1, 0)
    assert (stats.num_transitions, stats.tier_peak_blocks) == (1, 2)
    assert (stats.num_prefill_steps, stats.num_prefill_tokens) == (1, 9)
    assert (stats.num_decode_steps, stats.num_decode_rows, stats.mean_decode_batch) == (2, 2, 1.0)


def test_what_needs_no_decode_is_not_stored_and_takes_no_tier_block() -> None:
    scheduler = make_tiered(tier_blocks=1)
    add(scheduler, "a", prompt_of(12), max_tokens=1)  # longer than the tier
    step = step_of(scheduler)
    assert step.stores == []
    assert scheduler.num_tier_blocks_used == 0
    update(scheduler, step, 5)
    assert scheduler.schedule() is None
    assert scheduler.stats.num_transitions == 0
    assert_all_free(scheduler)


def test_the_store_begins_with_the_last_chunk() -> None:
    scheduler = make_tiered(max_num_batched_tokens=4)
    add(scheduler, "a", prompt_of(6))
    steps = [step_of(scheduler), step_of(scheduler)]
    assert [len(step.stores) for step in steps] == [0, 1]
    assert scheduler.num_tier_blocks_used == 2, "kept for it from the first chunk on"


def test_prompts_are_shared_in_the_prefill_pool() -> None:
    scheduler = make_tiered()
    add(scheduler, "a", prompt_of(11))
    add(scheduler, "b", prompt_of(11))
    step = step_of(scheduler)
    assert rows_of(step) == [("a", 0, 11, True), ("b", 8, 3, True)]
    first, second = step.stores
    assert first.blocks[:2] == second.blocks[:2]
    assert not set(first.tier_blocks) & set(second.tier_blocks), "each has its own copy"
    assert (first.num_tokens, second.num_tokens) == (11, 11)
    transferred(scheduler, first)
    assert scheduler.prefill_kv_usage == 3 / 16, "the other one still needs the shared ones"


def test_prefill_goes_on_while_others_are_stored_and_loads_begin_meanwhile() -> None:
    scheduler = make_tiered(max_num_batched_tokens=6)
    for index, name in enumerate("abc"):
        add(scheduler, name, prompt_of(6, 100 * (index + 1)))
    first, second = step_of(scheduler), step_of(scheduler)
    assert [ids_of_rows(step) for step in (first, second)] == [["a"], ["b"]]
    update(scheduler, first, 5)
    transferred(scheduler, first.stores[0])
    third = step_of(scheduler)
    assert (third.phase, ids_of_rows(third)) == ("prefill", ["c"])
    assert [load.request_id for load in third.loads] == ["a"]


def test_a_transfer_that_is_not_in_flight_is_an_error() -> None:
    scheduler = make_tiered()
    add(scheduler, "a", prompt_of(6))
    _, store = prefilled(scheduler)
    transferred(scheduler, store)
    with pytest.raises(KeyError):
        transferred(scheduler, store)


# -- ends at any moment ---------------------------------------------------------------------------


def test_an_end_while_its_store_is_in_flight() -> None:
    scheduler = make_tiered()
    request = add(scheduler, "a", prompt_of(6))
    step, store = prefilled(scheduler, EOS)
    assert request.finish_reason == "stop"
    assert (scheduler.num_tier_blocks_used, scheduler.prefill_kv_usage) == (2, 2 / 16)
    assert scheduler.schedule() is None, "nothing is left to decode"
    transferred(scheduler, store)
    assert_all_free(scheduler)
    assert step.finished == []
    add(scheduler, "b", [1], max_tokens=1)
    assert step_of(scheduler).finished == ["a"], "told when nothing uses its blocks any more"


def test_an_end_that_is_known_after_its_store_is_complete() -> None:
    scheduler = make_tiered()
    add(scheduler, "a", prompt_of(6))
    step = step_of(scheduler)
    transferred(scheduler, step.stores[0])
    assert scheduler.num_tier_blocks_used == 2
    update(scheduler, step, EOS)
    assert_all_free(scheduler)


def test_an_abort_in_the_tier() -> None:
    scheduler = make_tiered()
    add(scheduler, "a", prompt_of(6))
    _, store = prefilled(scheduler)
    transferred(scheduler, store)
    scheduler.finish("a", "abort")
    assert_all_free(scheduler)


def test_an_abort_in_the_middle_of_a_prompt_gives_back_what_the_tier_kept_for_it() -> None:
    scheduler = make_tiered(max_num_batched_tokens=4)
    add(scheduler, "a", prompt_of(6))
    step = step_of(scheduler)
    scheduler.finish("a", "abort")
    assert scheduler.num_tier_blocks_used == 2
    update(scheduler, step)
    assert_all_free(scheduler)


def test_an_abort_while_its_load_is_in_flight() -> None:
    scheduler = make_tiered()
    add(scheduler, "a", prompt_of(6))
    _, store = prefilled(scheduler)
    transferred(scheduler, store)
    step = step_of(scheduler)
    scheduler.finish("a", "abort")
    update(scheduler, step)
    assert scheduler.kv_usage == 2 / 16, "the load still writes to its blocks"
    assert scheduler.num_tier_blocks_used == 2, "and reads its tier blocks"
    transferred(scheduler, *step.loads)
    assert_all_free(scheduler)


def test_a_load_may_be_complete_before_its_step_is_reported() -> None:
    scheduler = make_tiered()
    add(scheduler, "a", prompt_of(6))
    _, store = prefilled(scheduler)
    transferred(scheduler, store)
    step = step_of(scheduler)
    transferred(scheduler, *step.loads)
    assert rows_of(step_of(scheduler)) == [("a", 6, 1, True)]


def test_an_abort_of_a_resident_waits_for_its_row() -> None:
    scheduler = make_tiered()
    resident(scheduler)
    step = step_of(scheduler)
    scheduler.finish("a", "abort")
    assert scheduler.kv_usage > 0
    update(scheduler, step, 9)
    assert_all_free(scheduler)


# -- what can run at all --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_prompt", "max_tokens", "message"),
    [
        (17, 1, "the prompt needs 5 KV blocks, the pool for prompts has 4"),
        (16, 2, "the prompt needs 2 blocks of 8 tokens in the host tier, which has 1"),
        (8, 26, "prompt and answer may need 9 KV blocks, there are 8"),
    ],
)
def test_what_no_pool_can_hold_is_refused(num_prompt: int, max_tokens: int, message: str) -> None:
    scheduler = make_tiered(prefill_blocks=4, tier_blocks=1, tier_block_size=8, num_blocks=8)
    with pytest.raises(RequestError, match=message):
        scheduler.validate(num_prompt, SamplingParams(max_tokens=max_tokens))
    scheduler.validate(16, SamplingParams(max_tokens=1))
    scheduler.validate(8, SamplingParams(max_tokens=25))


def test_a_tier_block_is_whole_device_blocks() -> None:
    with pytest.raises(AssertionError, match="whole device blocks of 4 tokens"):
        make_tiered(tier_block_size=6)


# -- debug ----------------------------------------------------------------------------------------


def test_blocks_that_a_load_takes_are_not_poisoned_afterwards() -> None:
    """Freed in a decode phase, loaded to in the prefill phase after it."""
    scheduler = make_tiered(num_blocks=2, max_num_batched_tokens=6)
    resident(scheduler, max_tokens=2)
    update(scheduler, step_of(scheduler), 5)
    assert scheduler.kv_usage == 0
    for index, name in enumerate("bc"):
        add(scheduler, name, prompt_of(6, 100 * (index + 1)), max_tokens=2)
    step = step_of(scheduler)
    update(scheduler, step, 5)
    transferred(scheduler, *step.stores)
    step = step_of(scheduler)
    (load,) = step.loads
    assert (step.phase, ids_of_rows(step), sorted(load.blocks)) == ("prefill", ["c"], [0, 1])
    transferred(scheduler, load)
    step = step_of(scheduler)
    assert (step.phase, ids_of_rows(step), step.poison_blocks) == ("decode", ["b"], [])


def test_freed_prefill_blocks_are_poisoned_in_a_prefill_step() -> None:
    scheduler = make_tiered(enable_prefix_caching=False, max_num_batched_tokens=6)
    add(scheduler, "a", prompt_of(6))
    add(scheduler, "b", prompt_of(6, 200))
    first = step_of(scheduler)
    transferred(scheduler, *first.stores)
    second = step_of(scheduler)
    assert sorted(second.poison_blocks) == sorted(first.stores[0].blocks)
