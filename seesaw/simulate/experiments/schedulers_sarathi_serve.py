"""Sarathi-Serve (OSDI 2024, arXiv 2403.02310), simulated: the highest rate under a bound on the
time between tokens, each of its two parts alone, and how long answers wait for one long prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from seesaw.layout.parallel import ParallelLayout
from seesaw.plan.machine import Machine
from seesaw.plan.workload import parse_workload
from seesaw.simulate.experiments.models import model
from seesaw.simulate.experiments.runner import ExperimentOptions, run_all
from seesaw.simulate.experiments.serving import (
    System,
    at_rate,
    capacities,
    machine_of,
    serve,
)
from seesaw.simulate.results import Result
from seesaw.simulate.scenario import Arrival, Scenario

WHOLE_TOKENS = 16384
"""Of a step with whole prompts: vLLM's default, the longest request."""
SEQUENCES = 128
DELAY_S = 2.0
"""Median wait for the first step, at most."""
PREFILL_FIRST = System(policy="prefill-first", step_tokens=WHOLE_TOKENS)


def stall_free(budget: int) -> System:
    return System(
        policy="sarathi-serve", options={"token_budget": budget}, step_tokens=max(budget, SEQUENCES)
    )


def hybrid_only() -> System:
    return System(
        policy="sarathi-serve", options={"batches": "hybrid-only"}, step_tokens=WHOLE_TOKENS
    )


def chunk_only(budget: int) -> System:
    return System(
        policy="sarathi-serve",
        options={"token_budget": budget, "batches": "chunk-only"},
        step_tokens=max(budget, SEQUENCES),
    )


# -- capacity ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Place:
    """A model where the paper ran it. Bounds of the 99th percentile between tokens, strict and
    relaxed, in seconds; capacity over vLLM's that was published, by dataset and bound, where it
    was."""

    model: str
    machine: Callable[[], Machine]
    layout: ParallelLayout
    bounds_s: Mapping[str, float]
    published: Mapping[str, float]


def _falcon() -> Machine:
    """Two servers of four cards, pairs of which have NVLink: rings cross PCIe. 100 Gbit/s between
    the servers."""
    machine = machine_of("8xa100-80-pcie")
    links = replace(machine.links, send_bytes_per_s=11e9, send_latency_s=5e-5)
    return replace(machine, links=links)


PLACES = (
    Place(
        model="mistral-7b",
        machine=lambda: machine_of("a100-80-pcie"),
        layout=ParallelLayout(),
        bounds_s={"strict": 0.1, "relaxed": 0.5},
        published={"strict": 2.6},
    ),
    Place(
        model="yi-34b",
        machine=lambda: machine_of("2xa100-80-pcie", links_of="2xa100-80-sxm"),
        layout=ParallelLayout(tp=2),
        bounds_s={"strict": 0.2, "relaxed": 1.0},
        published={"strict": 3.7, "relaxed": 1.65},
    ),
    Place(
        model="falcon-180b",
        machine=_falcon,
        layout=ParallelLayout(tp=4, pp=2),
        bounds_s={"strict": 1.0, "relaxed": 5.0},
        published={"strict": 3.6, "relaxed": 1.48, "end_to_end": 6.9},
    ),
)
DATASETS = {"sharegpt": "sharegpt-8k", "arxiv": "arxiv-16k"}
BUDGETS = {"strict": 512, "relaxed": 2048}
"""Tokens of a step that the paper advises."""
NUM_REQUESTS = 1024
FIRST_RATE = 0.25


def capacity(options: ExperimentOptions) -> dict[str, Any]:
    """Requests per second within the strict and the relaxed bound of three models, prefill first
    and stall free: beside Sarathi-Serve's gain over vLLM."""
    searches: dict[tuple[str, str, str, str], Callable[[float], Scenario]] = {}
    bounds: dict[tuple[str, str], float] = {}
    for place in PLACES:
        for dataset in DATASETS:
            for bound, seconds in place.bounds_s.items():
                bounds[place.model, bound] = seconds
                for system in ("prefill first", "stall free"):
                    key = place.model, dataset, bound, system
                    searches[key] = _search(place, *key[1:], options)

    def holds(key: tuple[str, str, str, str], result: Result) -> bool:
        latency = result.latency_s
        return (
            latency["between_tokens"].p99 <= bounds[key[0], key[2]]
            and latency["delay"].p50 <= DELAY_S
        )

    found = capacities(searches, holds, options, first=FIRST_RATE)
    rows: dict[str, dict[str, float | None]] = {}
    for place in PLACES:
        for dataset in DATASETS:
            for bound in place.bounds_s:
                one, other = (
                    found[place.model, dataset, bound, system]
                    for system in ("prefill first", "stall free")
                )
                rows[f"{place.model}, {dataset}, {bound}"] = {
                    "prefill_first": one, "stall_free": other,
                    "gain": other / one if one else None,
                    "published_at_most": place.published.get(bound),
                }  # fmt: skip
    return {
        "requests_per_s": rows,
        "bounds_s": {f"{name}, {bound}": seconds for (name, bound), seconds in bounds.items()},
        "plots": [
            {
                "kind": "bars",
                "title": "highest rate within the bound on the time between tokens",
                "y_label": "requests per second",
                "groups": {
                    name: {"prefill first": row["prefill_first"], "stall free": row["stall_free"]}
                    for name, row in rows.items()
                },
            }
        ],
    }


def _search(
    place: Place, dataset: str, bound: str, system: str, options: ExperimentOptions
) -> Callable[[float], Scenario]:
    spec, machine, workload = model(place.model), place.machine(), parse_workload(DATASETS[dataset])
    chosen = PREFILL_FIRST if system == "prefill first" else stall_free(BUDGETS[bound])
    count = options.requests(NUM_REQUESTS)

    def scenario(rate: float) -> Scenario:
        requests = at_rate(workload, rate, count, options.seed)
        return serve(chosen, spec, machine, place.layout, requests, max_num_seqs=SEQUENCES)

    return scenario


# -- each part alone -----------------------------------------------------------------------------

ABLATION = {
    "prefill first": PREFILL_FIRST,
    "hybrid only": hybrid_only(),
    "chunk only": chunk_only(1024),
    "both": stall_free(1024),
}
ABLATION_REQUESTS = 384
ABLATION_RATES = {"sharegpt": 0.55, "arxiv": 0.25}
"""Not published: requests per second at which prefill first is near what it can do."""
PUBLISHED_ABLATION = {
    "sharegpt": {"hybrid only": (0.53, 0.68), "chunk only": (1.04, 0.17), "both": (0.76, 0.14)},
    "arxiv": {"hybrid only": (3.78, 1.38), "chunk only": (5.38, 0.20), "both": (3.90, 0.17)},
}
"""Table 4: median seconds to the first token, and the 99th percentile between tokens."""


def ablation(options: ExperimentOptions) -> dict[str, Any]:
    """First tokens and time between tokens of Yi 34B on two A100 with chunks alone, whole prompts
    beside answers alone, and both: beside Sarathi-Serve's table 4."""
    place = PLACES[1]
    spec, machine = model(place.model), place.machine()
    runs = {}
    for dataset, rate in ABLATION_RATES.items():
        workload = parse_workload(DATASETS[dataset])
        requests = at_rate(workload, rate, options.requests(ABLATION_REQUESTS), options.seed)
        for name, system in ABLATION.items():
            runs[dataset, name] = serve(
                system, spec, machine, place.layout, requests, max_num_seqs=SEQUENCES
            )
    tables: dict[str, dict[str, dict[str, float]]] = {dataset: {} for dataset in ABLATION_RATES}
    for (dataset, name), result in run_all(runs, options).items():
        gaps = result.latency_s["between_tokens"]
        row = tables[dataset][name] = {
            "first_token_p50_s": result.latency_s["first_token"].p50,
            "between_tokens_p99_s": gaps.p99,
            "between_tokens_max_s": gaps.max,
        }
        if name in PUBLISHED_ABLATION[dataset]:
            first, between = PUBLISHED_ABLATION[dataset][name]
            row |= {"published_first_token": first, "published_between_tokens": between}
    return {"latencies": tables, "rates_per_s": ABLATION_RATES}


# -- one long prompt -----------------------------------------------------------------------------

STALL_ANSWERS = 32
STALL_PROMPTS = (4096, 8192)
STALL_AT_S = 10.0
"""When the long prompt comes: all answers are under way."""
STALL_BUDGETS = (512, 1024, 2048)


def stalls(options: ExperimentOptions) -> dict[str, Any]:
    """The longest that 32 answers of Yi 34B on two A100 wait for a token while a prompt of 4k or 8k
    tokens is computed."""
    place = PLACES[1]
    spec, machine = model(place.model), place.machine()
    systems = {"prefill first": PREFILL_FIRST} | {
        f"stall free, {budget}": stall_free(budget) for budget in STALL_BUDGETS
    }
    runs = {}
    for prompt in (0, *STALL_PROMPTS):
        requests = [Arrival(0.0, 1024, 400)] * STALL_ANSWERS
        if prompt:
            requests.append(Arrival(STALL_AT_S, prompt, 10))
        for name, system in systems.items():
            runs[name, prompt] = serve(
                system, spec, machine, place.layout, requests, max_num_seqs=SEQUENCES
            )
    longest: dict[str, dict[int, float]] = {name: {} for name in systems}
    for (name, prompt), result in run_all(runs, options).items():
        longest[name][prompt] = longest_gap(result, STALL_AT_S)
    return {
        "longest_gap_s": longest,
        "over_stall_free_1024": {
            prompt: longest["prefill first"][prompt] / longest["stall free, 1024"][prompt]
            for prompt in STALL_PROMPTS
        },
        "published": "prompts of 4k take 846 ms and of 8k 1951 ms with 32 answers, by its artifact",
    }


def longest_gap(result: Result, from_s: float) -> float:
    """Between tokens of the first `STALL_ANSWERS` requests, of gaps that end after `from_s`."""
    longest = 0.0
    for one in result.timings[:STALL_ANSWERS]:
        at_s = one.first_s
        for gap in one.gaps_s or ():
            at_s += gap
            if at_s > from_s:
                longest = max(longest, gap)
    return longest
