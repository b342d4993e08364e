"""Every pair of layouts on 1 to 4 ranks answers what one rank answers, in float32.

Ranks are started once per count and set up for one pair after another. After each forced change of
layout every parameter hashes to what a fresh load gives, and memory does not grow.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from seesaw.config import EngineConfig
from seesaw.layout import ParallelLayout, panels_suit
from seesaw.ops.native import native
from seesaw.sampling_params import SamplingParams
from seesaw.weights.checkpoint import Checkpoint, open_checkpoint
from tests.checkpoints import FAMILIES, VOCAB_SIZE
from tests.engine.rank_harness import (
    RankPool,
    Walker,
    engine_on,
    executor_of,
    fresh_hashes,
    generate,
    pairs_of,
)
from tests.reference import Greedy, count_near_ties

COUNTS = (1, 2, 3, 4)
GREEDY = SamplingParams(temperature=0, max_tokens=14, ignore_eos=True, logprobs=2)
LAYERS = {"num_hidden_layers": 5}
TIER = {"host_kv_memory": "1MiB", "max_model_len": 96}
"""Holds a few of the prompts, so that there are several changes of layout."""


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    made = RankPool()
    yield made
    made.close()


def random_prompts(count: int, longest: int, vocab_size: int) -> list[list[int]]:
    seed = random.randrange(2**31)
    print(f"random_prompts(seed={seed})")
    rng = random.Random(seed)
    lengths = [1, longest, *(rng.randrange(1, longest) for _ in range(count - 2))]
    return [[rng.randrange(4, vocab_size) for _ in range(length)] for length in lengths]


def checkpoint_of(model: Path) -> Checkpoint:
    return open_checkpoint(EngineConfig(model=str(model)))


def one_rank(model: Path, prompts: list[list[int]], **settings: Any) -> list[Any]:
    with engine_on(None, model, "tp1", "tp1", policy="continuous", **settings) as engine:
        return generate(engine, prompts, GREEDY)


def as_greedy(completion: Any) -> Greedy:
    """A completion as the reference, with the gaps between its two best logits."""
    gaps = []
    for position in completion.logprobs:
        best = sorted((entry.logprob for entry in position.values()), reverse=True)
        gaps.append(best[0] - best[1])
    return Greedy(completion.token_ids, gaps)


SMOLLM2_WITHIN = 2e-4
"""Log-probabilities of its 30 layers in float32 are up to 7e-5 from those in float64, on one rank,
on four, and in transformers alike (36 prompts of 1 to 120 random tokens): two of them may differ by
twice as much, and a little."""


def check_logits(got: list[Any], expected: list[Any], within: float = 1e-4) -> None:
    """Log-probabilities as long as the tokens before are the same."""
    for ours, theirs in zip(got, expected, strict=True):
        for mine, reference in zip(ours.logprobs, theirs.logprobs, strict=True):
            common = mine.keys() & reference.keys()
            for token in common:
                assert abs(mine[token].logprob - reference[token].logprob) < within
            if max(mine, key=lambda t: mine[t].logprob) != max(
                reference, key=lambda t: reference[t].logprob
            ):
                break


def check_walk(
    engine: Any, checkpoint: Checkpoint, prefill: ParallelLayout, decode: ParallelLayout, times: int
) -> Walker:
    """Hashes after each of `times` changes of layout."""
    pair = {"prefill": prefill, "decode": decode}
    suits = panels_suit(checkpoint.spec, "float32", pair.values()) is None
    expected = {
        phase: fresh_hashes(
            checkpoint, layout, torch.float32, panels=suits and native() is not None
        )
        for phase, layout in pair.items()
    }
    walker = Walker(engine)
    first = None
    for turn in range(times):
        phase = walker.change()
        found = executor_of(engine).inspect()
        assert [one.param_hashes for one in found] == expected[phase], f"turn {turn} to {phase}"
        device = [one.device_bytes for one in found]
        first = first or device
        assert device == first, f"turn {turn}: device memory changed"
    return walker


@pytest.mark.parametrize("num_ranks", COUNTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_pair_answers_as_one_rank(family, num_ranks, tiny_checkpoint, pool):
    model = tiny_checkpoint(family, **LAYERS)
    checkpoint = checkpoint_of(model)
    prompts = random_prompts(10, 70, VOCAB_SIZE)
    expected = one_rank(model, prompts, max_model_len=96)
    pairs = pairs_of(num_ranks, checkpoint.spec)
    assert len(pairs) == {1: 1, 2: 5, 3: 5, 4: 14}[num_ranks]
    ties = 0
    for prefill, decode in pairs:
        with engine_on(pool.of(num_ranks), model, prefill, decode, **TIER) as engine:
            got = generate(engine, prompts, GREEDY)
            ties += count_near_ties(
                [one.token_ids for one in got], [as_greedy(one) for one in expected]
            )
            check_logits(got, expected)
            if prefill != decode:
                check_walk(engine, checkpoint, prefill, decode, 4)
    assert ties <= 2 + len(pairs) // 2, f"{ties} answers part at near-ties in {len(pairs)} pairs"


@pytest.mark.parametrize(
    ("prefill", "decode", "settings"),
    [
        ("pp2", "tp2", {}),
        ("pp2", "tp2", {"reload": "missing"}),
        ("tp2", "pp2", {"reshard_from": "peers"}),
        ("pp4", "tp4", {"reshard_from": "peers"}),
        ("pp2-tp2", "tp4", {"reload": "all"}),
        ("dp2-pp2", "dp2-tp2", {"reshard_from": "peers"}),
    ],
)
def test_twenty_changes_leave_weights_and_memory_as_they_were(
    prefill, decode, settings, tiny_checkpoint, pool
):
    model = tiny_checkpoint("qwen3", num_hidden_layers=8, hidden_size=128, intermediate_size=256)
    one, other = ParallelLayout.parse(prefill), ParallelLayout.parse(decode)
    with engine_on(pool.of(one.num_ranks), model, one, other, **TIER, **settings) as engine:
        walker = check_walk(engine, checkpoint_of(model), one, other, 4)
        before = [rank.rss_bytes for rank in executor_of(engine).inspect()]
        for _ in range(20):
            walker.change()
        after = [rank.rss_bytes for rank in executor_of(engine).inspect()]
    grown = [late - early for early, late in zip(before, after, strict=True)]
    assert max(grown) < 1 << 20, f"bytes grown per rank: {grown}"


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {"tier_block_size": 16},
        {"tier_block_size": 64},
        {"tier_block_size": 256, "host_kv_memory": "4MiB"},
        {"tier_order": "layer"},
        {"tier_order": "token"},
    ],
)
def test_any_size_and_order_of_tier_block(settings, num_ranks, tiny_checkpoint, pool):
    model = tiny_checkpoint("llama", **LAYERS)
    prompts = random_prompts(10, 70, VOCAB_SIZE)
    expected = one_rank(model, prompts, max_model_len=96)
    for prefill, decode in (("pp", "tp"), ("tp", "pp")):
        with engine_on(
            pool.of(num_ranks), model, f"{prefill}{num_ranks}", f"{decode}{num_ranks}",
            **(TIER | settings),
        ) as engine:  # fmt: skip
            got = generate(engine, prompts, GREEDY)
            engine.settle()
            moved = engine.stats.transfers
        assert moved.tier_pieces > 0
        assert moved.kv_store_bytes == moved.predicted.kv_store_bytes > 0
        assert moved.kv_load_bytes == moved.predicted.kv_load_bytes > 0
        assert moved.weight_bytes_moved == moved.predicted.weight_bytes_moved
        ties = count_near_ties([o.token_ids for o in got], [as_greedy(o) for o in expected])
        assert ties <= 2


@pytest.mark.parametrize(
    ("prefill", "decode", "settings"),
    [
        ("pp4+1", "tp2", {}),
        ("pp1+4", "tp2", {"reshard_from": "peers"}),
        ("tp2", "pp2+3", {"reload": "missing"}),
        ("pp4+1", "pp1+4", {"reshard_from": "peers"}),
        ("pp1+4", "pp1+4", {"policy": "continuous"}),
    ],
)
def test_stages_of_any_number_of_layers_answer_as_one_rank(
    prefill, decode, settings, tiny_checkpoint, pool
):
    model = tiny_checkpoint("llama", **LAYERS)
    prompts = random_prompts(10, 70, VOCAB_SIZE)
    expected = one_rank(model, prompts, max_model_len=96)
    one, other = ParallelLayout.parse(prefill), ParallelLayout.parse(decode)
    with engine_on(pool.of(2), model, one, other, **(TIER | settings)) as engine:
        got = generate(engine, prompts, GREEDY)
        engine.settle()
        moved = engine.stats.transfers
        assert moved.kv_store_bytes == moved.predicted.kv_store_bytes
        assert moved.weight_bytes_moved == moved.predicted.weight_bytes_moved
        if one != other:
            assert moved.kv_store_bytes > 0
            check_walk(engine, checkpoint_of(model), one, other, 4)
    assert count_near_ties([o.token_ids for o in got], [as_greedy(o) for o in expected]) <= 2
    check_logits(got, expected)


def test_ranks_serve_the_next_engine_whatever_was_in_flight(tiny_checkpoint, pool):
    model = tiny_checkpoint("llama")
    answers = []
    for _ in range(3):
        with engine_on(pool.of(2), model, "pp2", "tp2", **TIER) as engine:
            answers.append(generate(engine, [[5] * 40], GREEDY)[0].token_ids)
            engine.add_request("unfinished", [7] * 50, GREEDY)
            engine.step()
    assert answers[1:] == answers[:-1]


@pytest.mark.model
@pytest.mark.parametrize(
    ("prefill", "decode"), [("pp2", "tp2"), ("tp2", "pp2"), ("pp3", "tp3"), ("pp2-tp2", "tp4")]
)
def test_smollm2_answers_as_on_one_rank(prefill, decode, smollm2_gguf, pool):
    """9 query and 3 KV heads: cut unevenly in two, replicated on four."""
    prompts = random_prompts(6, 120, 40000)
    settings = {"device_memory": "2GiB", "max_model_len": 256, "host_kv_memory": "64MiB"}
    expected = one_rank(smollm2_gguf, prompts, **settings)
    one, other = ParallelLayout.parse(prefill), ParallelLayout.parse(decode)
    with engine_on(pool.of(one.num_ranks), smollm2_gguf, one, other, **settings) as engine:
        got = generate(engine, prompts, GREEDY)
        check_walk(engine, checkpoint_of(smollm2_gguf), one, other, 2)
    ties = count_near_ties([o.token_ids for o in got], [as_greedy(o) for o in expected])
    assert ties <= 1
    check_logits(got, expected, SMOLLM2_WITHIN)
