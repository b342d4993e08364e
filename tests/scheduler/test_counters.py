"""Counts by which published schedules differ, where they follow from arithmetic."""

from __future__ import annotations

import random
from typing import Any

import pytest

from seesaw.scheduler.counters import StepCounter, StepCounts
from seesaw.scheduler.scheduler import Scheduler
from tests.scheduler.harness import (
    add,
    make_scheduler,
    prompt_of,
    run_all,
    run_step,
    sizes_of,
    step_of,
)

LARGE: dict[str, Any] = {
    "num_blocks": 4000, "block_size": 16, "max_model_len": 20_000, "max_num_seqs": 64,
    "max_num_batched_tokens": 16_384, "enable_prefix_caching": False, "debug": False,
}  # fmt: skip
NUM_LAYERS = 2


def counted(policy: str, tile: int = 128, **options: Any) -> tuple[Scheduler, StepCounts]:
    scheduler = make_scheduler(options, policy=policy, **LARGE)
    scheduler.counter = StepCounter(tile)
    return scheduler, scheduler.counter.counts


def decoding(scheduler: Scheduler, count: int, max_tokens: int = 3000) -> None:
    """So many requests with their first token drawn."""
    for index in range(count):
        add(scheduler, f"d{index}", prompt_of(1, index), max_tokens=max_tokens, ignore_eos=True)
    while any(request.num_output_tokens == 0 for request in scheduler._residency.requests.values()):
        run_step(scheduler)


@pytest.mark.parametrize(("length", "chunk"), [(1024, 256), (8192, 512), (1000, 128), (7, 128)])
@pytest.mark.parametrize("policy", ["sarathi", "sarathi-serve", "continuous"])
def test_chunks_read_kv_again(policy: str, length: int, chunk: int) -> None:
    """C * N (N + 1) / 2 positions where chunks are full, (N + 1) / 2 times those of a prompt in one
    piece (schedulers notes 1d.2)."""
    option = {"sarathi": "chunk", "sarathi-serve": "token_budget"}.get(policy, "max_prefill_chunk")
    scheduler, counts = counted(policy, **{option: chunk})
    add(scheduler, "a", prompt_of(length), max_tokens=1)
    run_all(scheduler)
    chunks = -(-length // chunk)
    expected = sum(min(length, (i + 1) * chunk) for i in range(chunks))
    if length % chunk == 0:
        assert expected == chunk * chunks * (chunks + 1) // 2
        assert expected / length == (chunks + 1) / 2
    assert counts.prompt_key_layers == expected * NUM_LAYERS
    assert counts.prompt_passes == chunks * NUM_LAYERS
    assert counts.prompt_row_layers == length * NUM_LAYERS
    assert (counts.decode_key_layers, counts.num_recomputed_tokens) == (0, 0)


def test_whole_prompts_read_their_kv_once() -> None:
    scheduler, counts = counted("prefill-first")
    add(scheduler, "a", prompt_of(8192), max_tokens=1)
    run_all(scheduler)
    assert counts.prompt_key_layers == 8192 * NUM_LAYERS
    assert counts.prompt_passes == NUM_LAYERS


@pytest.mark.parametrize(
    ("policy", "options", "padded"),
    [("sarathi", {}, 0), ("continuous", {"max_prefill_chunk": 256}, 125)],
)
def test_rows_that_fill_up_tiles(policy: str, options: dict[str, int], padded: int) -> None:
    """256 prompt tokens beside 3 decodes are 259 rows, computed as 384 (1d.4)."""
    scheduler, counts = counted(policy, **options)
    decoding(scheduler, 3)
    add(scheduler, "long", prompt_of(5000), max_tokens=1)
    before = counts.num_padded_rows
    step = run_step(scheduler)
    assert len(step.rows) == 4
    assert counts.num_padded_rows - before == padded
    assert step.num_tokens == (256 if policy == "sarathi" else 259)


def test_decodes_stall_for_as_long_as_prompts_are_computed_first() -> None:
    """2d.1: under prefill-first a stall in each step with a prompt; under the others none."""
    base = random.SystemRandom().randrange(2**48)
    for policy, options in (
        ("prefill-first", {}), ("sarathi", {}), ("sarathi-serve", {"token_budget": 512}),
    ):  # fmt: skip
        rng = random.Random(base)
        scheduler, counts = counted(policy, **options)
        decoding(scheduler, 5)
        assert counts.num_stalls == 0, "prompts that come together"
        num_prompt_steps = counts.num_prompt_steps
        for index in range(4):
            prompt = prompt_of(rng.randint(1, 16_000), 10 * index)
            add(scheduler, f"p{index}", prompt, max_tokens=1)
            run_step(scheduler)
        for _ in range(200):
            run_step(scheduler)
        if policy == "prefill-first":
            assert counts.num_prompt_steps - num_prompt_steps == 4, f"seed {base}"
            assert (counts.num_stalled_steps, counts.num_stalls) == (4, 20), f"seed {base}"
            assert counts.num_hybrid_steps == 0
        else:
            assert (counts.num_stalled_steps, counts.num_stalls) == (0, 0), f"{policy}, {base}"
            assert counts.num_hybrid_steps >= 4


def test_who_has_no_room_for_another_token_does_not_stall() -> None:
    """It waits for blocks of who yielded, which a step in flight still uses."""
    scheduler = make_scheduler(policy="sarathi-serve", num_blocks=6, enable_prefix_caching=False)
    scheduler.counter = StepCounter()
    for name, length in (("a", 7), ("b", 5), ("c", 4)):
        add(scheduler, name, prompt_of(length, 100 * ord(name)), max_tokens=6, ignore_eos=True)
    run_step(scheduler)
    assert sizes_of(step_of(scheduler)) == {"a": 1, "b": 1, "c": 1}
    assert sizes_of(step_of(scheduler)) == {"b": 1}, "a needs a third block, and c yields"
    assert scheduler.stats.num_preemptions == 1
    assert scheduler.counter.counts.num_stalls == 0


def test_what_is_computed_again_is_counted() -> None:
    scheduler = make_scheduler(policy="sarathi-serve", num_blocks=4, enable_prefix_caching=False)
    scheduler.counter = StepCounter()
    for name in "ab":
        add(scheduler, name, prompt_of(7, ord(name)), max_tokens=4, ignore_eos=True)
    run_all(scheduler)
    counts = scheduler.counter.counts
    # b had computed 7 + 1 positions when a needed its third block.
    assert (counts.num_preempted, counts.num_recomputed_tokens) == (1, 8)


def test_an_id_that_is_used_again_at_once_is_a_new_request() -> None:
    """The step that says that the first one ended begins the second one, whose last chunk of one
    token is no decode."""
    scheduler = make_scheduler({"token_budget": 8}, policy="sarathi-serve")
    scheduler.counter = StepCounter()
    for length in (4, 9):
        add(scheduler, "a", prompt_of(length, 100 * length), max_tokens=1)
        run_all(scheduler)
    counts = scheduler.counter.counts
    assert (counts.num_prompt_steps, counts.num_decode_rows) == (3, 0)
    assert (counts.prompt_row_layers, counts.num_recomputed_tokens) == (13 * NUM_LAYERS, 0)


def test_prompts_that_began_before_it_looked_on_are_known_as_such() -> None:
    scheduler = make_scheduler({"token_budget": 8}, policy="sarathi-serve")
    add(scheduler, "a", prompt_of(9), max_tokens=1)
    run_step(scheduler)
    scheduler.counter = StepCounter()
    run_all(scheduler)
    counts = scheduler.counter.counts
    assert (counts.num_prompt_steps, counts.num_decode_rows, counts.num_tokens) == (1, 0, 1)


def test_counts_of_several_schedulers_add_up() -> None:
    parts = [
        StepCounts(num_steps=2, num_tokens=30, most_tokens=20),
        StepCounts(num_steps=1, num_tokens=25, most_tokens=25),
    ]
    assert StepCounts.total(parts) == StepCounts(num_steps=3, num_tokens=55, most_tokens=25)
    assert StepCounts.total([]) == StepCounts()
