"""Runs the scenarios of an experiment, several at a time, and says how far it is."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import TypeVar

from seesaw.errors import DoesNotFit
from seesaw.simulate.results import Result
from seesaw.simulate.scenario import Arrival, Scenario
from seesaw.simulate.simulation import simulate

Key = TypeVar("Key", bound=Hashable)


SHORTLIST = 3
"""Scenarios of a group that are run in full."""


@dataclass(frozen=True, kw_only=True)
class ExperimentOptions:
    """`scale` multiplies the numbers of requests (the published ones at 1), `jobs` processes run at
    once, `progress(done, in all)` counts simulations."""

    scale: float = 1.0
    jobs: int = 1
    seed: int = 0
    progress: Callable[[int, int], None] = lambda done, total: None

    def requests(self, published: int) -> int:
        return max(1, round(published * self.scale))


def run_all(scenarios: Mapping[Key, Scenario], options: ExperimentOptions) -> dict[Key, Result]:
    """Results by key, in the order of `scenarios`; those that do not fit the machine are left
    out."""
    found: dict[Key, Result | None] = {}
    total = len(scenarios)
    if options.jobs == 1:
        for key, scenario in scenarios.items():
            found[key] = _run(scenario)
            options.progress(len(found), total)
    else:
        # Fork would copy locks that threads of a progress bar hold.
        with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
            futures = {pool.submit(_run, one): key for key, one in scenarios.items()}
            for future in as_completed(futures):
                found[futures[future]] = future.result()
                options.progress(len(found), total)
    return {key: result for key in scenarios if (result := found[key]) is not None}


def run_best(
    scenarios: Mapping[Key, Scenario],
    groups: Callable[[Key], Iterable[Hashable]],
    options: ExperimentOptions,
) -> dict[Key, Result]:
    """Results of the best few scenarios of each group, which are found with fewer requests: a
    quarter of them, and a hundred at least."""
    pilots = {key: replace(one, requests=_fewer(one)) for key, one in scenarios.items()}
    ranked: dict[Hashable, list[tuple[float, int, Key]]] = {}
    for index, (key, result) in enumerate(run_all(pilots, options).items()):
        for group in groups(key):
            ranked.setdefault(group, []).append((-result.requests_per_s, index, key))
    chosen = {key for found in ranked.values() for _, _, key in sorted(found)[:SHORTLIST]}
    return run_all({key: one for key, one in scenarios.items() if key in chosen}, options)


def _fewer(scenario: Scenario) -> Sequence[Arrival | tuple[float, int, int]]:
    requests = scenario.requests
    return requests[:: max(1, min(4, len(requests) // 100))]


def best_rates(
    scenarios: Mapping[tuple[float, str, int], Scenario], options: ExperimentOptions
) -> dict[str, list[tuple[float, float]]]:
    """(x, requests per second) by name, of runs by (x, name, tokens of a step): the best of the
    latter. A name that does not fit anywhere is left out."""
    best: dict[str, dict[float, float]] = {}
    for (x, name, _), result in run_all(scenarios, options).items():
        rates = best.setdefault(name, {})
        rates[x] = max(rates.get(x, 0.0), result.requests_per_s)
    return {name: sorted(rates.items()) for name, rates in best.items()}


def _run(scenario: Scenario) -> Result | None:
    try:
        return simulate(scenario)
    except DoesNotFit:
        return None
