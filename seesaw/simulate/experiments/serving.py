"""What the experiments on schedulers share: one policy in one layout as a scenario, requests that
come at a rate, and the highest rate at which a promise holds. Assumes nothing of any paper.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from seesaw.config import EngineConfig
from seesaw.families.spec import ModelSpec
from seesaw.layout.parallel import ParallelLayout
from seesaw.plan.machine import Machine
from seesaw.plan.machine_files import read_machines
from seesaw.plan.workload import Arrivals, Workload
from seesaw.simulate.arrivals import draw_requests
from seesaw.simulate.experiments.runner import ExperimentOptions, run_all
from seesaw.simulate.results import Result
from seesaw.simulate.scenario import Arrival, Scenario

Key = TypeVar("Key", bound=Hashable)

BLOCK = 16
UTILIZATION = 0.9
ROUNDS = 8
"""Rates that a search tries: Sarathi-Serve's artifact takes 7 or 8."""
POISSON = 1.0


@dataclass(frozen=True, kw_only=True)
class System:
    """A policy with its options, and the most tokens of a step."""

    policy: str
    options: Mapping[str, Any] = field(default_factory=dict)
    step_tokens: int


def machine_of(name: str, *, links_of: str | None = None) -> Machine:
    """Devices by name, joined as those called `links_of` are."""
    (machine,) = read_machines(name)
    if links_of is None:
        return machine
    return replace(machine, links=read_machines(links_of)[0].links)


def serve(
    system: System, spec: ModelSpec, machine: Machine, layout: ParallelLayout,
    requests: Sequence[Arrival], *, max_num_seqs: int, num_blocks: int | None = None,
) -> Scenario:  # fmt: skip
    """`max_num_seqs` in each replica. All that has come is known to the scheduler, but of jobs that
    are all there at the begin."""
    config = EngineConfig(
        model=spec.architecture,
        gpu_memory_utilization=UTILIZATION,
        block_size=BLOCK,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=system.step_tokens,
        enable_prefix_caching=False,
        policy=system.policy,
        policy_options=dict(system.options),
    )
    return Scenario(
        spec=spec, machine=machine, layouts=(layout, layout), config=config, requests=requests,
        open_loop=requests[-1].arrival_s > 0, times_tokens=True, num_blocks=num_blocks,
    )  # fmt: skip


def at_rate(workload: Workload, rate_per_s: float, count: int, seed: int) -> list[Arrival]:
    """The same requests at every rate, as Poisson has them come."""
    return draw_requests(workload, count, arrivals=Arrivals(rate_per_s, POISSON), seed=seed)


def capacities(
    searches: Mapping[Key, Callable[[float], Scenario]],
    holds: Callable[[Key, Result], bool],
    options: ExperimentOptions,
    *,
    first: float,
    rounds: int = ROUNDS,
) -> dict[Key, float]:
    """For each search the highest rate found at which its result `holds`; 0 where there is none.

    All searches go on together, a rate of each in a round: from `first` on twice as fast until one
    does not hold, then by halves.
    """
    best = dict.fromkeys(searches, 0.0)
    too_much: dict[Key, float] = {}
    rates = dict.fromkeys(searches, first)
    for at in range(rounds):
        runs = {key: make(rates[key]) for key, make in searches.items()}
        before, total = at * len(runs), rounds * len(runs)

        def progress(done: int, _: int, before: int = before, total: int = total) -> None:
            options.progress(before + done, total)

        results = run_all(runs, replace(options, progress=progress))
        for key, rate in rates.items():
            if key in results and holds(key, results[key]):
                best[key] = rate
            else:
                too_much[key] = rate
            most = too_much.get(key)
            rates[key] = 2 * rate if most is None else (best[key] + most) / 2
    return best
