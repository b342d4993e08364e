"""The committed experiments, small where they are long, and the paper's baseline as a policy."""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from seesaw.errors import ConfigError
from seesaw.scheduler.output import ModelOutput, SchedulerOutput
from seesaw.scheduler.step import StepBuilder
from seesaw.simulate.experiments import EXPERIMENTS, find, runner
from seesaw.simulate.experiments.models import model
from seesaw.simulate.experiments.runner import ExperimentOptions, run_all, run_best
from seesaw.simulate.experiments.systems import BASELINE, baseline, offline, paper_machine
from seesaw.simulate.experiments.virtual_engines import NoOptions, VirtualEngines
from seesaw.simulate.results import Result
from seesaw.simulate.scenario import Scenario
from seesaw.simulate.simulation import simulate
from tests.plan.devices import make_device, make_machine
from tests.simulate.scenarios import layouts, make_scenario

SMALL = ExperimentOptions(scale=0.02)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_there_and_says_what_it_is(name: str) -> None:
    run = find(name)
    text = run.__doc__ or sys.modules[run.__module__].__doc__
    assert text is not None
    assert len(text.split()) > 5


def test_an_unknown_experiment_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'batches'"):
        find("batchs")


def test_pools_give_what_was_published() -> None:
    found = find("pools")(ExperimentOptions())
    over, published = found["over_vllm"], found["published"]
    assert over["small"] < 0.9 < 1 < over["large"]
    for size in ("small", "large"):
        assert over[size] == pytest.approx(published[size], rel=0.2)
    # Many changes of layout, but most of the loss is not theirs.
    assert found["transitions"]["small"] > 5 * found["transitions"]["large"]
    assert over["small, our transitions"] < 0.9


def test_throughput_grows_with_the_job() -> None:
    counts = []
    options = replace(SMALL, progress=lambda done, total: counts.append((done, total)))
    found = find("batches")(options)
    assert counts == [(done + 1, 12) for done in range(12)]
    assert len(found["series"]) == 2
    for points in found["series"].values():
        assert [x for x, _ in points] == [1, 2, 4, 10, 20, 40]
        assert all(rate < more for (_, rate), (_, more) in pairwise(points))


def test_a_slower_half_is_between_all_fast_and_all_slow() -> None:
    found = find("unequal")(SMALL)["requests_per_s"]
    for name in found["4 L4"]:
        slow, mixed, fast = (found[key][name] for key in ("4 T4", "2 L4 + 2 T4", "4 L4"))
        assert slow * 0.99 <= mixed <= fast * 1.01


def test_the_tier_and_the_load() -> None:
    tier = find("tier")(SMALL)
    for name in ("minimal", "prefill-first"):
        rates = [rate for _, rate in tier["series"][name]]
        assert rates[-1] == max(rates) > rates[0], name
        assert tier["transitions"][name][2] > tier["transitions"][name][256], name
    arrivals = find("arrivals")(SMALL)
    for systems in arrivals["figures"].values():
        for points in systems.values():
            assert points[0]["p50_s"] <= points[-1]["p50_s"]
            assert all(point["p50_s"] <= point["p99_s"] for point in points)


def groups(key: tuple[str, int]) -> Iterator[str]:
    yield key[0]


def test_the_best_of_each_group_are_run_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 0.1 to 0.6 s in either group, in no order; one does not fit at all."""
    rng = random.Random(3)
    steps = list(range(1, 7))
    runs: dict[tuple[str, int], Scenario] = {}
    for group in ("one", "other"):
        for step in rng.sample(steps, len(steps)):
            machine = make_machine(make_device(step_overhead_s=step / 10))
            runs[group, step] = make_scenario(
                [(0.0, 4, 2)] * 400, machine=machine, debug=False, max_num_seqs=64
            )
    runs["one", 0] = make_scenario([(0.0, 4, 2)], device_memory="1MiB")
    ran: list[int] = []

    def counted(scenario: Scenario) -> Result:
        ran.append(len(scenario.requests))
        return simulate(scenario)

    monkeypatch.setattr(runner, "simulate", counted)
    found = run_best(runs, groups, ExperimentOptions())
    assert set(found) == {(group, step) for group in ("one", "other") for step in (1, 2, 3)}
    assert all(result.num_requests == 400 for result in found.values())
    assert sorted(ran) == [1] + [100] * 12 + [400] * 6
    monkeypatch.undo()
    assert found == run_all({key: runs[key] for key in found}, ExperimentOptions())


# -- the baseline ----------------------------------------------------------------------------------


class Watched(VirtualEngines):
    """Notes what must not be, and what was."""

    seen: dict[str, Any]

    def __init__(self, options: NoOptions) -> None:
        super().__init__(options)
        self.homes: dict[int, set[int]] = defaultdict(set)  # step in flight -> engines in it
        Watched.seen = {"most in flight": 0, "engines": set(), "most blocks": 0}

    def plan(self, step: StepBuilder) -> None:
        super().plan(step)
        engines = {request.request_id: self._engine_of[request.request_id]
                   for request in step.running}  # fmt: skip
        held: dict[int, int] = defaultdict(int)
        for request in step.running:
            held[engines[request.request_id]] += len(request.blocks)
        assert max(held.values(), default=0) <= step.config.num_blocks // step.stages, held
        own = {engines[request.request_id] for request in step.running
               if request.last_step == step.step_id}  # fmt: skip
        if not own:
            return
        assert len(own) == 1, "a step is of one engine"
        under_way = set().union(*self.homes.values())
        assert not own & under_way, "an engine has one step in flight"
        self.homes[step.step_id] = own
        seen = Watched.seen
        seen["most in flight"] = max(seen["most in flight"], len(self.homes))
        seen["engines"] |= own
        seen["most blocks"] = max(seen["most blocks"], *held.values())

    def observe(self, step: SchedulerOutput, done: ModelOutput) -> None:
        super().observe(step, done)
        del self.homes[step.step_id]


WATCHED = f"{__name__}:Watched"


@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("num_blocks", [80, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_each_engine_has_a_step_in_flight_and_its_share_of_the_blocks(
    stages: int, num_blocks: int, seed: int
) -> None:
    """Requests have up to 15 blocks; with 80 a share of 20 is short, of 1000 it is not."""
    rng = random.Random(f"{stages}/{num_blocks}/{seed}")
    requests = [(0.0, rng.randint(1, 30), rng.randint(1, 30)) for _ in range(60)]
    scenario = make_scenario(
        requests, f"pp{stages}", policy=WATCHED, num_blocks=num_blocks, max_num_seqs=48,
        max_num_batched_tokens=rng.choice([16, 64]), max_steps_in_flight=rng.choice([1, 2]),
    )  # fmt: skip
    result = simulate(scenario)
    assert result.output_tokens == sum(answer for _, _, answer in requests)
    assert Watched.seen["engines"] == set(range(stages))
    assert Watched.seen["most in flight"] == stages
    if num_blocks == 1000:
        assert result.num_preemptions == 0
    elif stages == 4:
        assert result.num_preemptions > 0
        assert Watched.seen["most blocks"] == 20


def test_engines_by_hand() -> None:
    """One request on each of two stages of 1 s; an engine alone would keep a stage idle."""
    alone = make_scenario([(0.0, 4, 3)], "pp2", policy=BASELINE, num_blocks=100)
    assert simulate(alone).samples["end_to_end"] == [6.0]
    # One step takes all that waits and that there is a place for.
    both = replace(alone, requests=[(0.0, 4, 3)] * 2)
    assert simulate(replace(both, config=replace(both.config, max_num_seqs=4))).elapsed_s == 6.0
    apart = simulate(replace(both, config=replace(both.config, max_num_seqs=2)))
    assert apart.samples["end_to_end"] == [6.0, 7.0]


def test_the_baseline_is_its_release_s() -> None:
    scenario = baseline(
        model("llama3-15b"), paper_machine("g6.48xlarge", 4), layouts("tp2-pp2")[0],
        offline(300, 20, 40), 512,
    )  # fmt: skip
    assert scenario.config.policy == BASELINE
    result = simulate(scenario)
    assert result.output_tokens == 40 * 20
    assert result.num_transitions == 0
    # Its driver costs time, and plans while devices wait.
    free = simulate(replace(scenario, host=type(scenario.host)()))
    assert free.elapsed_s < result.elapsed_s
