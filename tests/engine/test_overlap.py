"""What moves while steps compute changes no answer: weights that come layer by layer, stores by
groups of layers, with `overlap` and without."""

from __future__ import annotations

import random

import pytest

from seesaw.engine.between_layers import BetweenLayers, split_stores
from seesaw.engine.stalls import IdleClock, Stalls
from seesaw.layout import ParallelLayout, Range
from seesaw.layout.kv import STORE_LAYERS
from seesaw.scheduler.output import Batch, Row, SchedulerOutput, Store
from tests.checkpoints import VOCAB_SIZE
from tests.engine.rank_harness import RankPool, engine_on, generate
from tests.engine.test_pairs import GREEDY, LAYERS, TIER, check_walk, checkpoint_of, random_prompts


@pytest.fixture(scope="module")
def pool():
    made = RankPool()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("pair", "settings"),
    [
        (("pp2", "tp2"), {"reload": "missing"}),
        (("pp2", "tp2"), {"reload": "all", "collectives": "tcp"}),
        (("pp2", "tp2"), {"reshard_from": "peers"}),
        (("tp2", "pp2"), {"reshard_from": "peers", "collectives": "gloo"}),
        (("pp2", "tp2"), {"reshard_from": "peers", "collectives": "tcp"}),
    ],
)
def test_answers_and_bytes_are_the_same_with_overlap_and_without(
    pair, settings, tiny_checkpoint, pool
):
    model = tiny_checkpoint("llama", **LAYERS)
    prompts = random_prompts(9, 70, VOCAB_SIZE)
    found = []
    for overlap in (True, False):
        with engine_on(
            pool.of(2), model, *pair, **TIER, **settings, overlap=overlap
        ) as engine:  # fmt: skip
            found.append([one.token_ids for one in generate(engine, prompts, GREEDY)])
            engine.settle()
            moved = engine.stats.transfers
            assert moved.kv_store_bytes == moved.predicted.kv_store_bytes > 0
            assert moved.kv_load_bytes == moved.predicted.kv_load_bytes > 0
            assert moved.weight_bytes_moved == moved.predicted.weight_bytes_moved
            assert moved.stalls.visible_s > 0
            if overlap:
                layouts = [ParallelLayout.parse(text) for text in pair]
                check_walk(engine, checkpoint_of(model), *layouts, 3)
    assert found[0] == found[1]


@pytest.mark.parametrize("num_layers", [1, 3, 4, 5, 9])
def test_each_layer_is_waited_for_and_stored_once(num_layers: int) -> None:
    first = random.randrange(4)
    layers = Range(first, first + num_layers)
    stores = [Store(n, str(n), "prefill", [n], [n], 1) for n in range(2)]
    waited: list[int] = []
    parts: dict[int, list[Range]] = {0: [], 1: []}

    def store(one: Store, part: Range) -> None:
        assert part.stop <= len(waited) + first, "stored before it has run"
        parts[one.transfer_id].append(part)

    between = BetweenLayers(layers, waited.append, stores, store)
    for layer in range(*layers):
        between(layer)
        assert waited[-1] == layer
    waited.append(layers.stop)  # that all have run
    between.finish()
    assert waited[:-1] == [*range(*layers)]
    for found in parts.values():
        covered = [layer for part in found for layer in range(*part)]
        assert covered == [*range(*layers)]
        assert max(part.size for part in found) <= STORE_LAYERS


def test_stores_of_requests_without_a_row_may_begin_at_once() -> None:
    rows = [Row(name, 0, 1, 0, 2, True) for name in "abc"]
    stores = [Store(n, name, "decode", [n], [n], 1) for n, name in enumerate("bxa")]
    step = SchedulerOutput(3, batches=[Batch(rows[:1]), Batch(rows[1:])], stores=stores)
    assert split_stores(step) == ([stores[1]], [[stores[2]], [stores[0]]])


def test_time_without_a_step_is_charged_to_what_is_copied() -> None:
    clock = IdleClock(Stalls())

    def charged() -> tuple[bool, bool]:
        loads_s, stores_s = clock.stalls.loads_s, clock.stalls.stores_s
        clock.look(0)
        return clock.stalls.loads_s > loads_s, clock.stalls.stores_s > stores_s

    clock.look(0)
    assert charged() == (False, False), "nothing was under way"
    clock.under_way["store"] += 1
    clock.look(1)
    assert charged() == (False, False), "a step ran"
    assert charged() == (False, True)
    clock.under_way["load"] += 1
    clock.look(0)
    assert charged() == (True, False)
