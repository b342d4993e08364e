"""Nexus (arXiv 2507.06608), simulated: its three mixes on one L20, against prefill first, chunks
beside answers as vLLM has them, and Sarathi-Serve.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from seesaw.layout.parallel import ParallelLayout
from seesaw.plan.workload import parse_workload
from seesaw.simulate.experiments.models import model
from seesaw.simulate.experiments.runner import ExperimentOptions, run_all
from seesaw.simulate.experiments.serving import System, at_rate, capacities, machine_of, serve
from seesaw.simulate.results import Result
from seesaw.simulate.scenario import Arrival, Scenario

STEP_TOKENS = 2048
"""vLLM 0.8.1's default of a server, which the paper keeps on all sides."""
SEQUENCES = 256
CONTINUOUS = System(policy="continuous", step_tokens=STEP_TOKENS)
SYSTEMS = {
    "nexus": System(policy="nexus", step_tokens=STEP_TOKENS),
    "continuous": CONTINUOUS,
    "sarathi-serve": System(policy="sarathi-serve", options={"token_budget": 512}, step_tokens=512),
    # vLLM before chunks: as many tokens as its longest request.
    "prefill-first": System(policy="prefill-first", step_tokens=16384),
}


@dataclass(frozen=True, kw_only=True)
class Mix:
    """A model and the lengths it was given, on one L20."""

    model: str
    workload: str


MIXES = {
    "long data": Mix(model="qwen2.5-3b", workload="nexus-ldc"),
    "arxiv": Mix(model="qwen2.5-3b", workload="nexus-arxiv"),
    # Llama 3.1 8B has the sizes of Llama 3 8B.
    "mixed": Mix(model="llama3-8b", workload="nexus-mixed"),
}
LOADS = (0.3, 0.5, 0.7, 0.85, 0.95)
"""Of what `continuous` does when all requests are there at once."""
NUM_REQUESTS = 500
BLOW_UP = 3.0
"""The paper's throughput is the highest rate before latency blows up, which it does not define.
Here: before the seconds per token of an answer, waiting included, are this many times those of
`continuous` at the lowest load."""
PUBLISHED = {
    "throughput": "1.5 to 1.8 times vLLM (long data, arXiv), 1.9 (mixed); at most 2.2 on two cards",
    "first_token": "2 to 20 times sooner than vLLM; P95 2 to 3 times sooner, later for mixed",
    "between_tokens": "vLLM takes 1.24 to 1.48 times as long; at most 2.5",
}


def nexus(options: ExperimentOptions) -> dict[str, Any]:
    """First tokens, time between tokens and throughput of three mixes on one L20: two lanes against
    one stream of steps, by three policies."""
    count = options.requests(NUM_REQUESTS)

    def scenario(name: str, mix: Mix, requests: list[Arrival]) -> Scenario:
        return serve(
            SYSTEMS[name], model(mix.model), machine_of("l20"), ParallelLayout(), requests,
            max_num_seqs=SEQUENCES,
        )  # fmt: skip

    def arriving(name: str, mix: Mix, rate: float) -> Scenario:
        requests = at_rate(parse_workload(mix.workload), rate, count, options.seed)
        return scenario(name, mix, requests)

    offline = {}
    for told, mix in MIXES.items():
        drawn = parse_workload(mix.workload).draw(count, options.seed)
        offline[told] = scenario("continuous", mix, [Arrival(0.0, *one) for one in drawn])
    most = {told: one.requests_per_s for told, one in run_all(offline, options).items()}
    results = run_all(
        {
            (told, name, part): arriving(name, mix, part * most[told])
            for told, mix in MIXES.items()
            for name in SYSTEMS
            for part in LOADS
        },
        options,
    )
    bound = {
        told: BLOW_UP * results[told, "continuous", LOADS[0]].latency_s["normalized"].mean
        for told in MIXES
    }

    def search(told: str, name: str) -> Callable[[float], Scenario]:
        return lambda rate: arriving(name, MIXES[told], rate)

    reached = capacities(
        {(told, name): search(told, name) for told in MIXES for name in SYSTEMS},
        lambda key, result: result.latency_s["normalized"].mean <= bound[key[0]],
        options,
        first=min(most.values()) / 2,
    )
    return {
        "latencies": _latencies(results, most),
        "throughput_per_s": {
            told: {name: reached[told, name] for name in SYSTEMS} for told in MIXES
        },
        "nexus_over": {
            told: {
                name: reached[told, "nexus"] / reached[told, name]
                for name in SYSTEMS
                if name != "nexus" and reached[told, name]
            }
            for told in MIXES
        },
        "published": PUBLISHED,
        "plots": [_plot(told, results, most[told]) for told in MIXES],
    }


def _plot(
    told: str, results: dict[tuple[str, str, float], Result], most_per_s: float
) -> dict[str, Any]:
    return {
        "kind": "lines",
        "title": f"{MIXES[told].model} on one L20, {told}",
        "x_label": "requests per second",
        "y_label": "mean seconds to the first token",
        "series": {
            name: [
                (part * most_per_s, results[told, name, part].latency_s["first_token"].mean)
                for part in LOADS
            ]
            for name in SYSTEMS
        },
    }


def _latencies(
    results: dict[tuple[str, str, float], Result], most: dict[str, float]
) -> dict[str, dict[str, dict[str, float]]]:
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (told, name, part), result in results.items():
        first, between = result.latency_s["first_token"], result.latency_s["between_tokens"]
        found.setdefault(f"{told}, {part * most[told]:.2f}/s", {})[name] = {
            "ttft_mean_s": first.mean, "ttft_p99_s": first.p99, "tbt_mean_s": between.mean,
            "tbt_p99_s": between.p99,
        }  # fmt: skip
    return found
