"""What is seen of a change of layout: by hand, and against the simulator."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from seesaw.config import EngineConfig
from seesaw.layout.parallel import ParallelLayout
from seesaw.layout.ranges import rank_ranges
from seesaw.plan.cost_model import CostModel
from seesaw.plan.demand import Demand
from seesaw.plan.machine_files import read_machines
from seesaw.plan.schedules import Replica
from seesaw.plan.search import search
from seesaw.plan.step_times import Steps
from seesaw.plan.transition import Landing, landings, run_while_landing, visible_s
from seesaw.plan.work import WorkCounter
from seesaw.plan.workload import Constant, Lengths
from seesaw.simulate.simulation import Scenario, simulate
from tests.plan.devices import make_device, make_links, make_machine
from tests.plan.models import spec_of

CONFIG = EngineConfig(model="m")


def test_a_step_waits_for_the_first_round_or_is_caught_up_by_the_last() -> None:
    landing = Landing(first_s=1.0, last_s=4.0, behind=0.25).after(10.0)
    assert run_while_landing([landing], 10.0, 8.0) == (11.0, 19.0)  # computes for longer
    assert run_while_landing([landing], 10.0, 2.0) == (11.0, 14.5)  # copies for longer
    assert run_while_landing([landing], 20.0, 2.0) == (20.0, 22.0)  # comes later
    assert run_while_landing([], 3.0, 2.0) == (3.0, 5.0)


@pytest.mark.parametrize("seed", range(50))
def test_what_is_seen_is_what_is_left_when_each_layer_waits_for_its_own(seed: int) -> None:
    """Layer by layer, each in its round, of stages one after the other."""
    rng = random.Random(seed)
    num_stages, layers, send_s = rng.choice([1, 2, 4]), rng.randint(1, 12), rng.random()
    stages_s = [rng.uniform(0.1, 5) for _ in range(num_stages)]
    landed, at_s = [], -send_s
    for seconds in stages_s:
        rounds, copy_s = rng.randint(1, layers), rng.uniform(0, 10)
        landed.append(Landing(copy_s / rounds, copy_s, (layers - rounds + 1) / layers))
        at_s += send_s
        for layer in range(layers):
            come_s = (layer + 1) * copy_s / rounds if layer < rounds else 0.0
            at_s = max(at_s, come_s) + seconds / layers
    without_s = sum(stages_s) + (num_stages - 1) * send_s
    assert visible_s(landed, stages_s, send_s) == pytest.approx(at_s - without_s)


def landings_of(kind: str, prefill: str, decode: str, **settings: object) -> list[Landing]:
    """Of a change from one layout to the other, of 60 s from the host and 24 s from peers."""
    old, new = ParallelLayout.parse(prefill), ParallelLayout.parse(decode)
    device = replace(make_device(load_bytes_per_s=10.0), kind=kind)  # type: ignore[arg-type]
    machine = make_machine(device, old.num_ranks, make_links(peer=10.0))
    costs = CostModel(spec_of("8B"), machine, new, "float16")
    assert costs.spec.num_hidden_layers == 32
    moved = [{"host": 600, "peer": 240}] * old.num_ranks
    config = replace(CONFIG, **settings)
    return landings(costs, moved, old, new, config)  # type: ignore[arg-type]


def test_rounds_bring_a_layer_of_each_stage() -> None:
    assert landings_of("cuda", "pp2", "tp2") == [Landing(60 / 16, 60.0, 17 / 32)] * 2
    assert landings_of("cuda", "tp2", "pp2") == [Landing(60 / 16, 60.0, 1 / 16)] * 2
    assert landings_of("cuda", "pp4", "tp2-pp2") == [Landing(60 / 8, 60.0, 9 / 16)] * 4
    uneven = [Landing(60 / 20, 60.0, 1 / 20), Landing(60 / 12, 60.0, 1 / 12)]
    assert landings_of("cuda", "tp2", "pp20+12") == uneven
    # From the host alone layers come one by one.
    assert landings_of("cuda", "pp2", "tp2", reload="all") == [Landing(60 / 32, 60.0, 1 / 32)] * 2


def test_the_core_of_a_cpu_does_all_one_after_another() -> None:
    assert landings_of("cpu", "pp2", "tp2") == [Landing(84 / 16, 84.0, 1.0)] * 2


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_without_overlap_all_is_waited_for(kind: str) -> None:
    assert landings_of(kind, "pp2", "tp2", overlap=False) == [Landing(84.0, 84.0, 1.0)] * 2


@pytest.mark.parametrize("overlap", [True, False])
def test_seconds_of_changes_are_those_of_the_simulator(overlap: bool) -> None:
    """With several phases, so that long steps of prompts hide changes and short ones of answers do
    not."""
    (machine,) = read_machines("4xl4")
    lengths, count = Lengths(1000, 200), 60
    config = EngineConfig(
        model="m",
        max_model_len=1200,
        overlap=overlap,
        reshard_from="host",
        host_kv_memory="2GiB",
        max_num_seqs=8,
    )
    plan = search(spec_of("15B"), [machine], Constant("a job", "a test's", lengths), count, config)
    (pair,) = (one for one in plan.candidates if one.name == "pp4 -> tp4")
    own = replace(config, max_num_batched_tokens=pair.max_num_batched_tokens)
    scenario = Scenario(
        spec=spec_of("15B"), machine=machine, layouts=(pair.prefill, pair.decode), config=own,
        requests=[(0.0, *lengths)] * count,
    )  # fmt: skip
    found = simulate(scenario)
    assert found.num_transitions > 3
    change_s = found.transition_s / found.num_transitions
    assert pair.transition_s / pair.num_transitions == pytest.approx(change_s, rel=0.03)


def test_a_ring_of_blocks_is_free_sooner_where_stores_begin_sooner() -> None:
    """A ring of one prompt, which is computed on 4 stages and stored one after another: of 16
    layers on a stage the last four are stored after the step."""
    (machine,) = read_machines("4xl4")
    lengths, spec = Lengths(1000, 200), spec_of("15B")
    config = EngineConfig(model="m", max_model_len=1200)
    plan = search(spec, [machine], Constant("a job", "a test's", lengths), 60, config)
    pair = next(one for one in plan.candidates if one.name == "pp4 -> tp4")
    memory = replace(pair.memory, prefill_blocks=-(-1000 // pair.memory.block_size))
    demand, counter, prefill_s = Demand.of([lengths] * 60), WorkCounter(spec), []
    steps = {
        name: Steps(CostModel(spec, machine, layout, "float16"), counter, demand, 1000)
        for name, layout in (("prefill", pair.prefill), ("decode", pair.decode))
    }
    for overlap in (True, False):
        replica = Replica(demand, memory, steps, chunk=1000, max_num_seqs=64, overlap=overlap)
        prefill_s.append(replica.seesaw(0.0, 0.0).prefill.seconds)
    assert rank_ranges(pair.prefill, spec, 0).layers.size == 16
    rate = steps["prefill"].costs.store_bytes_per_s(0)
    store_s = memory.prefill_blocks * memory.prefill_block_bytes / rate
    assert prefill_s[1] - prefill_s[0] == pytest.approx(60 * store_s * 3 / 4)
