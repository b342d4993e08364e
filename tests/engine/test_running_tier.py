"""Running requests that take turns in the decode pool answer what one rank answers, in float32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from seesaw.engine import loader
from seesaw.errors import ConfigError
from tests.checkpoints import VOCAB_SIZE
from tests.engine.rank_harness import RankPool, engine_on, generate
from tests.engine.test_pairs import (
    GREEDY,
    LAYERS,
    TIER,
    as_greedy,
    check_logits,
    one_rank,
    random_prompts,
)
from tests.reference import count_near_ties

NUM_BLOCKS = 14


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    made = RankPool()
    yield made
    made.close()


@pytest.fixture
def small_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for two of the requests in the decode pool."""
    plan_memory = loader.plan_memory

    def plan(*args: Any, **kwargs: Any) -> Any:
        return replace(plan_memory(*args, **kwargs), num_blocks=NUM_BLOCKS)

    monkeypatch.setattr(loader, "plan_memory", plan)


@pytest.mark.usefixtures("small_pool")
@pytest.mark.parametrize("prefill", ["pp3", "tp3"])
def test_more_run_than_the_pool_holds(prefill, tiny_checkpoint, pool):
    model = tiny_checkpoint("llama", **LAYERS)
    prompts = random_prompts(12, 70, VOCAB_SIZE)
    expected = one_rank(model, prompts, max_model_len=96)
    settings = TIER | {"block_size": 16, "tier_block_size": 32, "host_kv_memory": "4MiB"}
    with engine_on(pool.of(3), model, prefill, "pp3", running_tier="on", **settings) as engine:
        (scheduler,) = engine._replicas.schedulers
        got = generate(engine, prompts, GREEDY)
        engine.settle()
        moved, stats = engine.stats.transfers, scheduler.stats
    assert stats.num_parked > 0
    assert stats.num_fetched > stats.num_parked, "each came from the tier once before"
    assert moved.kv_store_bytes == moved.predicted.kv_store_bytes > 0
    assert moved.kv_load_bytes == moved.predicted.kv_load_bytes > moved.kv_store_bytes
    check_logits(got, expected)
    assert count_near_ties([o.token_ids for o in got], [as_greedy(o) for o in expected]) <= 2


@pytest.mark.parametrize(
    ("layout", "settings", "why"),
    [("pp2", {}, "it has 2 stages"), ("pp3", {"policy": "continuous"}, "keeps no host tier")],
)
def test_where_it_cannot_be_it_is_refused(layout, settings, why, tiny_checkpoint, pool):
    model = tiny_checkpoint("llama", **LAYERS)
    with (
        pytest.raises(ConfigError, match=why),
        engine_on(
            pool.of(int(layout[-1])), model, layout, layout, running_tier="on",
            **{"max_model_len": 96} | settings,
        ),
    ):  # fmt: skip
        pass
