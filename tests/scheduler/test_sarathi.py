"""Policy `sarathi`: one chunk in each step, with all that decodes; nobody ever yields."""

from __future__ import annotations

import random
from typing import Any

import pytest

from seesaw.errors import ConfigError
from seesaw.scheduler import policies
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


def make(chunk: int = 16, tile: int = 4, **settings: Any) -> Scheduler:
    return make_scheduler({"chunk": chunk, "tile": tile}, policy="sarathi", **settings)


def test_decodes_ride_on_one_chunk() -> None:
    scheduler = make(num_blocks=64)
    for name, length in (("a", 5), ("b", 40), ("c", 3)):
        add(scheduler, name, prompt_of(length, 100 * ord(name)), ignore_eos=True)
    steps = [sizes_of(run_step(scheduler)) for _ in range(6)]
    assert steps == [
        {"a": 5},
        {"a": 1, "b": 15},
        {"a": 1, "b": 15},
        {"a": 1, "b": 10},  # what is left
        {"a": 1, "b": 1, "c": 3},
        {"a": 1, "b": 1, "c": 1},
    ]


def test_balanced_prompts_and_answers_need_few_steps_of_decodes_alone() -> None:
    """At P : D = C / (B - 1) every decode finds a chunk; with more answers there are steps without
    a prompt, with fewer some without a decode (schedulers notes 1d.3)."""
    seats, chunk = 5, 16
    shares = []
    for answer in (4, 16, 64):  # (B - 1) / C of a prompt of 64 tokens is 16
        scheduler = make(
            chunk, 1, max_num_seqs=seats, num_blocks=400, max_model_len=200, debug=False
        )
        for index in range(40):
            prompt = prompt_of(64, 1000 * index)
            add(scheduler, str(index), prompt, max_tokens=answer, ignore_eos=True)
        decodes = [all(row.num_tokens == 1 for row in step.rows) for step in run_all(scheduler)]
        shares.append(sum(decodes) / len(decodes))
    # The last requests end with nobody behind them.
    assert shares[0] < 0.05
    assert shares[1] < 0.15
    assert shares[2] > 0.5


def test_a_step_of_many_decodes_grows_by_tiles() -> None:
    """Nine of them, a width of 8: 12 tokens, so that the prompt goes on."""
    scheduler = make(8, 4, max_num_seqs=16, num_blocks=64)
    for index in range(9):
        add(scheduler, str(index), prompt_of(1, 10 * index), max_tokens=16, ignore_eos=True)
        run_step(scheduler)
    add(scheduler, "p", prompt_of(20, 500), max_tokens=1)
    step = run_step(scheduler)
    assert sizes_of(step) == {**{str(index): 1 for index in range(9)}, "p": 3}


@pytest.mark.parametrize(("budget", "size"), [(30, 28), (3, 3), (64, 32)])
def test_whole_tiles_of_what_a_step_has_room_for(budget: int, size: int) -> None:
    scheduler = make(32, 4, max_num_batched_tokens=budget)
    add(scheduler, "a", prompt_of(60), max_tokens=1)
    assert run_step(scheduler).num_tokens == size


def test_blocks_for_the_longest_answers_are_kept() -> None:
    """Of 16 blocks each may need 6: two run, though the prompts of three would fit."""
    scheduler = make(num_blocks=16)
    for name in "abc":
        add(scheduler, name, prompt_of(8, 100 * ord(name)), max_tokens=16, ignore_eos=True)
    steps = run_all(scheduler)
    first = {name: next(i for i, s in enumerate(steps) if name in sizes_of(s)) for name in "abc"}
    last = {name: max(i for i, s in enumerate(steps) if name in sizes_of(s)) for name in "abc"}
    assert first["b"] == 1
    assert first["c"] > last["a"]
    assert scheduler.stats.num_preemptions == 0
    assert_all_free(scheduler)


def test_a_prompt_that_needs_the_whole_pool_waits_for_it() -> None:
    scheduler = make(num_blocks=8)
    add(scheduler, "a", prompt_of(4), max_tokens=3, ignore_eos=True)
    add(scheduler, "b", prompt_of(28, 200), max_tokens=5, ignore_eos=True)
    steps = run_all(scheduler)
    assert not any({"a", "b"} <= set(sizes_of(step)) for step in steps)


def test_chunks_of_one_prompt_are_in_all_stages_at_once() -> None:
    scheduler = make(8, 4, num_stages=2)
    add(scheduler, "a", prompt_of(30), max_tokens=2)
    add(scheduler, "b", prompt_of(8, 200), max_tokens=2)
    steps = [sizes_of(step_of(scheduler)) for _ in range(3)]
    assert steps == [{"a": 8}] * 3
    assert scheduler.schedule() is None


def test_one_tile_of_tokens_costs_no_padding_whatever_decodes() -> None:
    rng = random.Random(seed := random.SystemRandom().randrange(2**48))
    scheduler = make(32, 8, num_blocks=400, max_model_len=200, debug=False)
    for index in range(30):
        prompt = prompt_of(rng.randint(1, 150), 1000 * index)
        add(scheduler, str(index), prompt, max_tokens=rng.randint(1, 30), ignore_eos=True)
    full = 0
    for step in run_all(scheduler):
        chunk = [row for row in step.rows if not row.samples]
        assert len(chunk) <= 1, f"seed {seed}"
        full += len(chunk)
        assert not chunk or step.num_tokens == 32, f"seed {seed}"
    assert full > 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk": 300}, "chunk=300: expected a multiple of tile=128, such as 256"),
        ({"chunk": 5, "tile": 100}, "such as 100"),
        ({"chunk": 0}, "chunk=0: expected tokens"),
        ({"chunk": 128.0}, "chunk=128.0: expected tokens"),
        ({"tile": 0}, "tile=0: expected rows"),
        ({"tile": True}, "tile=True: expected rows"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        policies.make("sarathi", options)
    assert message in str(error.value)
