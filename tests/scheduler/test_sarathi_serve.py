"""Policy `sarathi-serve`: decodes, prompts under way, new prompts, in this order under a budget."""

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
    update,
)


def make(token_budget: int = 10, batches: str = "stall-free", **settings: Any) -> Scheduler:
    options = {"token_budget": token_budget, "batches": batches}
    return make_scheduler(options, policy="sarathi-serve", **settings)


def test_decodes_then_prompts_under_way_then_new_ones() -> None:
    scheduler = make(num_blocks=64)
    add(scheduler, "a", prompt_of(4), ignore_eos=True)
    run_step(scheduler)
    for name, length in (("b", 12), ("c", 5), ("d", 9)):
        add(scheduler, name, prompt_of(length, 100 * ord(name)), ignore_eos=True)
    steps = [sizes_of(run_step(scheduler)) for _ in range(4)]
    assert steps == [
        {"a": 1, "b": 9},
        {"a": 1, "b": 3, "c": 5, "d": 1},
        {"a": 1, "b": 1, "c": 1, "d": 7},
        {"a": 1, "b": 1, "c": 1, "d": 1},
    ]


@pytest.mark.parametrize(("length", "budget", "decodes"), [(100, 16, 3), (64, 8, 0), (97, 12, 11)])
def test_steps_to_the_first_token(length: int, budget: int, decodes: int) -> None:
    """ceil(L / (tau - D)) with as many decodes all the while (schedulers notes 2d.4)."""
    scheduler = make(
        budget, num_blocks=400, max_model_len=300, max_num_seqs=64, max_num_batched_tokens=64,
        debug=False,
    )  # fmt: skip
    for index in range(decodes):
        add(scheduler, str(index), prompt_of(1, 10 * index), max_tokens=200, ignore_eos=True)
    if decodes:
        assert run_step(scheduler).num_tokens == decodes
    request = add(scheduler, "p", prompt_of(length, 5000))
    num_steps = 0
    while request.num_output_tokens == 0:
        assert run_step(scheduler).num_tokens <= budget
        num_steps += 1
    assert num_steps == -(-length // (budget - decodes))


def test_prompts_get_exactly_what_decodes_leave() -> None:
    """min(left, tau - D), and no step is larger than max(tau, D) (2d.3)."""
    rng = random.Random(seed := random.SystemRandom().randrange(2**48))
    budget = rng.randint(1, 40)
    scheduler = make(
        budget, num_blocks=2000, max_model_len=300, max_num_seqs=100, max_num_batched_tokens=100,
        debug=False, enable_prefix_caching=False,
    )  # fmt: skip
    left: dict[str, int] = {}
    for index in range(60):
        name, length = str(index), rng.randint(1, 60)
        add(scheduler, name, prompt_of(length, 100 * index), max_tokens=20, ignore_eos=True)
        left[name] = length
    while scheduler.num_unfinished:
        sizes = sizes_of(run_step(scheduler))
        decodes = [name for name in sizes if left[name] == 0]
        num_prompt_tokens = sum(sizes.values()) - len(decodes)
        assert num_prompt_tokens == min(sum(left.values()), budget - len(decodes)), f"seed {seed}"
        assert sum(sizes.values()) <= max(budget, len(decodes)), f"seed {seed}"
        for name in sizes:
            left[name] -= min(left[name], sizes[name])
    assert_all_free(scheduler)


def test_decodes_of_several_stages_may_exceed_the_budget_and_are_not_dropped() -> None:
    scheduler = make(4, num_stages=3, max_num_seqs=16)
    for index in range(16):
        add(scheduler, str(index), prompt_of(1, 10 * index), max_tokens=9, ignore_eos=True)
    prompts = [step_of(scheduler) for _ in range(4)]
    assert [step.num_tokens for step in prompts] == [4] * 4
    for step in prompts:
        update(scheduler, step, *[5] * 4)
    add(scheduler, "late", prompt_of(3, 900))
    assert sizes_of(step_of(scheduler)) == {str(index): 1 for index in range(6)}


def test_the_youngest_yields_even_in_the_middle_of_its_prompt() -> None:
    scheduler = make(8, num_blocks=8, enable_prefix_caching=False)
    add(scheduler, "a", prompt_of(7), max_tokens=12, ignore_eos=True)
    run_step(scheduler)
    b = add(scheduler, "b", prompt_of(22, 200), max_tokens=2)
    steps = [sizes_of(run_step(scheduler)) for _ in range(2)]
    assert steps == [{"a": 1, "b": 7}, {"a": 1}], "a needs its third block; b has the other six"
    assert (b.num_preemptions, b.num_computed, scheduler.num_waiting) == (1, 0, 1)
    late = add(scheduler, "late", prompt_of(1, 900), max_tokens=1)
    run_all(scheduler)
    assert b.num_output_tokens == 2
    assert late.num_output_tokens == 1
    assert_all_free(scheduler)


def test_a_prompt_that_does_not_fit_is_not_overtaken() -> None:
    scheduler = make(32, num_blocks=8)
    add(scheduler, "a", prompt_of(16), max_tokens=2, ignore_eos=True)
    add(scheduler, "b", prompt_of(20, 200), max_tokens=2, ignore_eos=True)
    add(scheduler, "c", prompt_of(1, 300), max_tokens=2, ignore_eos=True)
    steps = [sizes_of(step) for step in run_all(scheduler)]
    assert steps == [{"a": 16}, {"a": 1}, {"b": 20, "c": 1}, {"b": 1, "c": 1}]


def test_blocks_above_the_watermark_are_for_new_prompts() -> None:
    options = {"token_budget": 64, "block_watermark": 0.5}
    scheduler = make_scheduler(options, policy="sarathi-serve", max_num_batched_tokens=64)
    # 16 blocks, of which a has 2 and then 3; b takes 5 and leaves 8, c would leave 3.
    add(scheduler, "a", prompt_of(8), max_tokens=8, ignore_eos=True)
    run_step(scheduler)
    for name in "bc":
        add(scheduler, name, prompt_of(20, 100 * ord(name)), max_tokens=4, ignore_eos=True)
    assert sizes_of(run_step(scheduler)) == {"a": 1, "b": 20}


# -- the paper's ablations ------------------------------------------------------------------------


def test_hybrid_only_does_not_cut_prompts() -> None:
    scheduler = make(10, "hybrid-only", num_blocks=64)
    add(scheduler, "a", prompt_of(4), ignore_eos=True)
    run_step(scheduler)
    add(scheduler, "b", prompt_of(25, 200), ignore_eos=True)
    assert sizes_of(run_step(scheduler)) == {"a": 1, "b": 25}


def test_chunk_only_takes_turns() -> None:
    scheduler = make(10, "chunk-only", num_blocks=64)
    add(scheduler, "a", prompt_of(4), ignore_eos=True)
    add(scheduler, "b", prompt_of(25, 200), ignore_eos=True)
    steps = [sizes_of(run_step(scheduler)) for _ in range(6)]
    assert steps == [{"a": 4, "b": 6}, {"a": 1}, {"b": 10}, {"a": 1}, {"b": 9}, {"a": 1, "b": 1}]
    assert sizes_of(run_step(scheduler)) == {"a": 1, "b": 1}, "no prompt is left for the other turn"


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_budget": 0}, "token_budget=0: expected tokens, at least 1, or auto"),
        ({"token_budget": "atuo"}, "token_budget='atuo': expected tokens, at least 1, or auto"),
        ({"token_budget": "auto"}, "Give tbt_bound_s"),
        ({"tbt_bound_s": 0.1}, "token_budget=512 nothing is bound"),
        ({"token_budget": "auto", "tbt_bound_s": 0}, "tbt_bound_s=0: expected seconds above 0"),
        ({"token_budget": "auto", "tbt_bound_s": "1"}, "tbt_bound_s='1': expected seconds"),
        ({"token_budget": "auto", "tbt_bound_s": float("nan")}, "tbt_bound_s=nan: expected"),
        (
            {"token_budget": "auto", "tbt_bound_s": 1, "batches": "chunk-only"},
            "batches='chunk-only': token_budget='auto' foresees",
        ),
        ({"batches": "both"}, "batches='both': expected one of stall-free, hybrid-only, chunk-"),
        ({"tile": 0}, "tile=0: expected tokens"),
        ({"block_watermark": 1}, "block_watermark=1: expected a fraction"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        policies.make("sarathi-serve", options)
    assert message in str(error.value)
