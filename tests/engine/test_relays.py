"""Prompts that go from pool to pool are answered as on one rank, over whatever ranks talk; the
bytes that went are those that the layouts predict, and what the decode pool has no room for goes
through the tier.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.checkpoints import VOCAB_SIZE
from tests.engine.rank_harness import RankPool, engine_on, generate
from tests.engine.test_pairs import GREEDY, as_greedy, one_rank, random_prompts
from tests.reference import count_near_ties

SETTINGS = {"max_model_len": 96, "kv_path": "peers", "host_kv_memory": "1MiB", "block_size": 32}
HEADS = {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 144}
"""Cut unevenly in two, replicated on four."""


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    made = RankPool()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("prefill", "decode", "collectives"),
    [
        ("pp2", "tp2", "shm"),
        ("pp2", "tp2", "tcp"),
        ("tp2", "pp2", "gloo"),
        ("tp2", "tp2", "shm"),
        ("pp4", "tp2-pp2", "shm"),
        ("pp2-tp2", "tp4", "tcp"),
        ("dp2-pp2", "dp2-tp2", "gloo"),
    ],
)
def test_answers_are_those_of_one_rank(prefill, decode, collectives, tiny_checkpoint, pool):
    model = tiny_checkpoint("llama", num_hidden_layers=5, **HEADS)
    prompts = random_prompts(12, 70, VOCAB_SIZE)
    expected = one_rank(model, prompts, max_model_len=96)
    count = 4 if "dp2" in prefill or "4" in prefill or "-" in prefill else 2
    settings = SETTINGS | {"collectives": collectives, "max_num_seqs": 4, "reload": "missing"}
    if prefill == decode:
        del settings["reload"]
    with engine_on(pool.of(count), model, prefill, decode, **settings) as engine:
        got = generate(engine, prompts, GREEDY)
        engine.settle()
        moved, stats = engine.stats.transfers, engine.stats.scheduler
    assert 0 < stats.num_relayed < len(prompts), "some go from pool to pool, some by the tier"
    assert moved.kv_relay_bytes == moved.predicted.kv_relay_bytes > 0
    assert moved.kv_peer_bytes == moved.predicted.kv_peer_bytes
    assert (moved.kv_peer_bytes > 0) == (prefill != decode)
    assert moved.kv_store_bytes == moved.predicted.kv_store_bytes
    assert moved.kv_load_bytes == moved.predicted.kv_load_bytes
    ties = count_near_ties([one.token_ids for one in got], [as_greedy(one) for one in expected])
    assert ties <= 2


def test_one_rank_keeps_kv_on_its_device(tiny_checkpoint):
    model = tiny_checkpoint("llama")
    prompts = random_prompts(6, 70, VOCAB_SIZE)
    expected = one_rank(model, prompts, max_model_len=96)
    with engine_on(None, model, "tp1", "tp1", **SETTINGS) as engine:
        got = generate(engine, prompts, GREEDY)
        engine.settle()
        moved = engine.stats.transfers
    assert moved.kv_relay_bytes == moved.predicted.kv_relay_bytes > 0
    assert moved.kv_peer_bytes == moved.kv_store_bytes == 0
    ties = count_near_ties([one.token_ids for one in got], [as_greedy(one) for one in expected])
    assert ties <= 1
