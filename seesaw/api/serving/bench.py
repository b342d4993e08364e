"""Puts loads on systems and makes figures of it: given rates one after the other, or those of a
search for the highest one. The same for what is measured and what is simulated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from seesaw.api.serving.capacity import CAME_ALONE, CAME_AT_ONCE, Rule, Trial, find_capacity
from seesaw.api.serving.journal import Journal
from seesaw.api.serving.load import Load, Traffic
from seesaw.api.serving.system import Progress, Served, System
from seesaw.latency import Slo, Spread, samples

Bar = Callable[[str], AbstractContextManager[Progress]]
"""Shows how far a run is; told what it is of."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """`rates` are requests a second; with `finds_capacity` one, where the search begins."""

    traffic: Traffic
    rates: Sequence[float]
    rule: Rule
    finds_capacity: bool
    journal: Journal
    bar: Bar

    def run(self, systems: Sequence[System]) -> dict[str, Any]:
        """Figures of all runs, and of the capacities that they found. Raises KeyboardInterrupt
        where it came before the first run was made; after that the figures are of those that
        were, and say so ("interrupted")."""
        runs: list[dict[str, Any]] = []
        capacities: list[dict[str, Any]] = []
        first: dict[float, Sequence[Sequence[int]]] = {}
        found: dict[str, Any] = {"runs": runs, "interrupted": False}
        if self.finds_capacity:
            found["capacity"] = capacities
        try:
            for system in systems:
                with ExitStack() as stack:
                    is_first = system is systems[0]
                    session = _Session(self, system, stack, runs, first, is_first=is_first)
                    if self.finds_capacity:
                        capacities.append(session.capacity(self.rates[0]))
                    else:
                        for rate in self.rates:
                            session.figures(rate)
        except KeyboardInterrupt:
            if not runs:
                raise
            found["interrupted"] = True
        return found


class _Session:
    """Runs of one system, which go to `runs`. It is entered, on `stack`, for the first that was not
    made before: a model takes a while to load. `first`: answers of the first system, by rate."""

    def __init__(
        self,
        bench: Bench,
        system: System,
        stack: ExitStack,
        runs: list[dict[str, Any]],
        first: dict[float, Sequence[Sequence[int]]],
        *,
        is_first: bool,
    ) -> None:
        self._bench = bench
        self._system = system
        self._stack = stack
        self._runs = runs
        self._first = first
        self._is_first = is_first
        self._is_open = False

    def figures(self, rate_per_s: float) -> dict[str, Any]:
        """Of the run at that rate."""
        bench, label = self._bench, self._system.label
        found = bench.journal.get(label, rate_per_s)
        if found is None:
            if not self._is_open:
                self._stack.enter_context(self._system)
                self._is_open = True
            load = bench.traffic.at(rate_per_s)
            with bench.bar(f"{label} at {rate_per_s:.3g}/s") as progress:
                served = self._system.serve(load, progress)
            found = {
                "policy": label,
                **self._system.about(),
                **figures_of(served, load, bench.rule.slo),
                "same_answers": self._same_answers(served, rate_per_s),
            }
            bench.journal.add(found)
        self._runs.append(found)
        return found

    def _same_answers(self, served: Served, rate_per_s: float) -> int | None:
        """Requests that were answered as the first system answered them; None where nothing was
        drawn, or not by it: its run was made before."""
        answers = served.answers
        if answers is None:
            return None
        if self._is_first:
            self._first[rate_per_s] = answers
            return None
        known = self._first.get(rate_per_s)
        if known is None:
            return None
        return sum(one == other for one, other in zip(answers, known, strict=True))

    def capacity(self, start_per_s: float) -> dict[str, Any]:
        """Of the system, with the trials that found it."""
        rule = self._bench.rule

        def run(rate_per_s: float) -> Trial:
            found = self.figures(rate_per_s)
            spreads = {name: Spread(**one) for name, one in found["latency_s"].items()}
            # By Little's law.
            num_at_once = found["requests_per_s"] * spreads["end_to_end"].mean
            return Trial(
                rate_per_s=rate_per_s,
                broken=rule.broken(spreads),
                came_at_once=found["span_s"] < CAME_AT_ONCE * found["elapsed_s"],
                came_alone=num_at_once < CAME_ALONE,
            )

        capacity = find_capacity(run, start_per_s)
        return {
            "policy": self._system.label,
            "rate_per_s": capacity.rate_per_s,
            "above_per_s": capacity.above_per_s,
            "told": capacity.describe(),
            "trials": [asdict(trial) for trial in capacity.trials],
        }


def figures_of(served: Served, load: Load, slo: Slo) -> dict[str, Any]:
    """Throughput, latencies and what became of the promises. Rates are over the seconds from the
    first arrival to the last token. `num_stalls` is None where no bound of the gaps was given,
    `expert_loads` and `bubble_s` where they were not counted."""
    timings, elapsed_s = served.timings, served.elapsed_s
    num_met = slo.num_met(timings)
    return {
        "rate_per_s": load.rate_per_s,
        "num_requests": len(timings),
        "span_s": load.span_s,
        "elapsed_s": elapsed_s,
        "requests_per_s": len(timings) / elapsed_s,
        "output_tokens_per_s": served.output_tokens / elapsed_s,
        "tokens_per_s": (served.input_tokens + served.output_tokens) / elapsed_s,
        "input_tokens": served.input_tokens,
        "output_tokens": served.output_tokens,
        "latency_s": {name: asdict(Spread.of(values)) for name, values in samples(timings).items()},
        "num_met": num_met,
        "goodput_per_s": num_met / elapsed_s,
        "num_stalls": None if math.isinf(slo.tbt_s) else slo.num_stalls(timings),
        "scheduler": dict(served.scheduler),
        "counts": asdict(served.counts),
        "expert_loads": served.expert_loads,
        "bubble_s": None if served.bubbles_s is None else asdict(Spread.of(served.bubbles_s)),
    }
