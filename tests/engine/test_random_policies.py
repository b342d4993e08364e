"""Engines with policies, options, budgets, arrivals and aborts drawn at random, against
`continuous` in the same layout: every answer is the same to the last token, and nothing is left.

In `seesaw._cpu` a row comes out the same to the bit whatever it runs beside, so nothing is
tolerated; plain torch is compared in `test_policies`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from seesaw import SamplingParams
from seesaw.engine.engine import Engine
from seesaw.engine.ranks import Ranks
from seesaw.ops.native import native
from seesaw.scheduler import policies
from seesaw.scheduler.output import SchedulerOutput
from tests.checkpoints import VOCAB_SIZE
from tests.engine.rank_harness import RankPool, engine_on

LAYERS = 5
LONGEST = 96
"""Positions of a request."""
RUNS = 24
FAMILIES = ("llama", "qwen3_moe")
POLICIES = ("continuous", "prefill-first", "sarathi", "sarathi-serve", "layered-prefill", "nexus")
MET = {"layered-prefill": {"waves of several", "beside a wave"}}
"""What so many runs of a policy must have met, beside aborts."""
pytestmark = pytest.mark.skipif(
    native() is None, reason="rows are equal to the bit in seesaw._cpu alone"
)


class Asked(NamedTuple):
    prompt: list[int]
    sampling: SamplingParams
    arrival: int
    """Of the engine's steps, before which it comes."""
    abort: int | None
    """Steps after that, by which it is aborted."""


def draw_requests(rng: random.Random) -> list[Asked]:
    """They come in bursts, while answers of those before go on; half of the prompts begin as others
    do."""
    bursts = [0, rng.randint(2, 10), rng.randint(10, 30)]
    common = [rng.randrange(4, VOCAB_SIZE) for _ in range(LONGEST // 2)]
    found = []
    for _ in range(rng.randint(6, 20)):
        begin = common[: rng.choice([0, 0, 16, 33, 48])]
        rest = rng.randint(1, rng.choice([2, 30]))
        prompt = begin + [rng.randrange(4, VOCAB_SIZE) for _ in range(rest)]
        most = rng.randint(1, min(rng.choice([4, 30]), LONGEST - len(prompt)))
        found.append(
            Asked(
                prompt,
                SamplingParams(temperature=0, max_tokens=most, ignore_eos=True),
                rng.choice(bursts),
                rng.randint(0, 25) if rng.random() < 0.25 else None,
            )
        )
    return found


def draw_options(rng: random.Random, policy: str, most: int) -> dict[str, Any]:
    """Of what the policy takes, some, in steps of at most so many tokens."""
    tile = rng.choice([size for size in (1, 4, 8) if size <= most])
    options: dict[str, dict[str, Any]] = {
        "continuous": {"max_prefill_chunk": rng.choice([0, 1, 7, 30])},
        "prefill-first": {},
        "sarathi": {"tile": tile, "chunk": tile * rng.randint(1, min(6, most // tile))},
        "sarathi-serve": {
            "token_budget": min(most, rng.choice([1, 5, 16, 40])),
            "batches": rng.choice(["stall-free", "hybrid-only", "chunk-only"]),
        },
        "layered-prefill": {
            "group_tokens": rng.choice([1, 3, 16]),
            "max_groups": rng.randint(2, LAYERS + 1),
            "wave_tokens": rng.choice([7, 40, 8192]),
        },
        "nexus": {
            "prefill_tokens": rng.choice([0, 1, 9, 40]),
            "age_weight": rng.choice([0.0, 15.0, 1e6]),
            "prefill_share": rng.choice([0.0, 0.5]),
            "kv_switch": rng.choice([0.0, 0.7]),
            "hysteresis": rng.choice([0.0, 0.5]),
        },
    }
    found = options[policy]
    if policy != "sarathi":
        found["block_watermark"] = rng.choice([0.0, 0.01, 0.3])
    return found


def draw_settings(rng: random.Random, policy: str) -> dict[str, Any]:
    seqs = rng.choice([1, 3, 6, 10, 12])
    most = rng.choice([seqs, 16, 48, 128])
    return {
        "policy": policy,
        "policy_options": draw_options(rng, policy, most),
        "max_num_seqs": seqs,
        "max_num_batched_tokens": most,
        "max_model_len": LONGEST,
        "block_size": rng.choice([8, 16]),
        "enable_prefix_caching": rng.random() < 0.7,
        "cpu_threads": 2 if policy == "nexus" else 1,
    }


def with_few_blocks(
    model: Path, layout: str, ranks: Ranks | None, settings: dict[str, Any], count: int
) -> dict[str, Any]:
    """The settings with memory for so many more blocks than the longest request needs."""
    with engine_on(ranks, model, layout, layout, **settings) as engine:
        plan = engine.memory_plan
    blocks = -(-LONGEST // settings["block_size"]) + count
    nbytes = plan.arena_bytes + plan.work_bytes + blocks * plan.block_bytes
    return settings | {"device_memory": str(nbytes)}


def play(engine: Engine, asked: Sequence[Asked]) -> dict[int, tuple[list[int], str | None]]:
    """Tokens of each request, and how it ended."""
    found: dict[int, tuple[list[int], str | None]] = {}
    at, arrived = 0, dict[int, int]()
    while len(found) < len(asked):
        for index, one in enumerate(asked):
            if index not in arrived and one.arrival <= at:
                engine.add_request(str(index), one.prompt, one.sampling)
                arrived[index] = at
            if index in arrived and one.abort is not None and at == arrived[index] + one.abort:
                engine.abort_request(str(index))
        if engine.has_unfinished_requests():
            for output in engine.step():
                answer = output.outputs[0]
                found[int(output.request_id)] = answer.token_ids, answer.finish_reason
        at += 1
    engine.settle()
    return found


def check(
    rng: random.Random, model: Path, policy: str, layout: str = "tp1", ranks: Ranks | None = None
) -> Counter[str]:
    """One run; what was met in it."""
    asked, settings = draw_requests(rng), draw_settings(rng, policy)
    whole = [one._replace(arrival=0, abort=None) for one in asked]
    plain = {"policy": "continuous", "max_model_len": LONGEST, "cpu_threads": 1}
    with engine_on(ranks, model, layout, layout, **plain) as engine:
        expected = play(engine, whole)
    if rng.random() < 0.6:
        settings = with_few_blocks(model, layout, ranks, settings, rng.randint(0, 6))
    seen = Counter[str]()

    def watch(step: SchedulerOutput, _: float) -> None:
        goes_on = [row for row in step.rows if row.layer_start > 0]
        seen["waves of several"] += len(goes_on) > 1
        seen["beside a wave"] += 0 < len(goes_on) < len(step.rows)
        seen["hybrid"] += len({row.num_tokens > 1 for row in step.rows}) > 1

    with engine_on(ranks, model, layout, layout, **settings) as engine:
        engine.observe_steps(watch)
        got = play(engine, asked)
        assert engine.stats.kv_usage == 0, "blocks are held by nobody"
        seen["yielded"] += engine.stats.scheduler.num_preemptions
        states = [scheduler._residency for scheduler in engine._replicas.schedulers]
        assert not any(one.requests or one.num_saved_tokens for one in states)
    for index, (tokens, reason) in got.items():
        if reason != "abort":
            assert tokens == expected[index][0], f"{settings}: answer {index}"
        else:
            assert asked[index].abort is not None
            seen["aborted"] += 1
            assert tokens == expected[index][0][: len(tokens)], f"{settings}: answer {index}"
    return seen


@pytest.mark.parametrize("policy", POLICIES)
def test_answers_are_those_of_continuous(
    policy: str, tiny_checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the block accounting checked in each step, and freed blocks full of NaN."""
    monkeypatch.setenv("SEESAW_DEBUG_BLOCKS", "1")
    base, seen = random.randrange(2**31), Counter[str]()
    for seed in range(base, base + RUNS):
        print(f"seed={seed}")
        rng = random.Random(seed)
        model = tiny_checkpoint(rng.choice(FAMILIES), num_hidden_layers=LAYERS)
        seen += check(rng, model, policy)
    print(dict(seen))
    assert {"aborted", *MET.get(policy, ())} <= set(seen), (
        "the runs show nothing of what they are for"
    )


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    made = RankPool()
    yield made
    made.close()


@pytest.mark.parametrize("layout", ["tp2", "pp2", "pp2+3"])
def test_answers_are_those_of_continuous_on_two_ranks(
    layout: str, tiny_checkpoint: Any, pool: RankPool
) -> None:
    base = random.randrange(2**31)
    one_layout = [policy for policy in POLICIES if policies.num_lanes(policy) == 1]
    for seed, policy in enumerate(one_layout, base):
        print(f"seed={seed}")
        rng = random.Random(seed)
        model = tiny_checkpoint(rng.choice(FAMILIES), num_hidden_layers=LAYERS)
        check(rng, model, policy, layout, pool.of(2))
