"""What the paper's evaluation leaves out: the size of the host tier, the rules of changing phase,
latency under load, and unequal devices. All with this runtime on both sides.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from seesaw.layout.parallel import ParallelLayout
from seesaw.plan.machine import Machine
from seesaw.plan.workload import Arrivals
from seesaw.simulate.arrivals import draw_arrivals
from seesaw.simulate.experiments.models import model
from seesaw.simulate.experiments.runner import ExperimentOptions, run_all
from seesaw.simulate.experiments.systems import offline, paper_machine, split, static
from seesaw.simulate.scenario import Arrival, Scenario

L4 = "g6.48xlarge"
PAIR = ParallelLayout(pp=8), ParallelLayout(tp=4, pp=2)
STATIC = ParallelLayout(tp=2, pp=4)
CHUNK = 2048
STATIC_CHUNK = 512
GIB = 2**30

TIER_GIB = (2, 4, 8, 16, 32, 64, 128, 256)


def tier(options: ExperimentOptions) -> dict[str, Any]:
    """Throughput of a 34B model on 8 L4 over the size of the host tier, for three rules of when
    decode gives way to prefill and for weights that are fetched whole."""
    spec, machine = model("codellama-34b"), paper_machine(L4, 8)
    requests = offline(3000, 250, options.requests(500))
    runs: dict[tuple[str, int], Scenario] = {}
    for size in TIER_GIB:
        plain = split(spec, machine, PAIR, requests, CHUNK, tier_bytes=size * GIB)
        runs["minimal", size] = plain
        for switch in ("prefill-first", "decode-first"):
            config = replace(plain.config, policy_options={"switch": switch})
            runs[switch, size] = replace(plain, config=config)
        runs["minimal, all weights reloaded", size] = replace(
            plain, config=replace(plain.config, reload="all")
        )
    runs["static tp2-pp4", 0] = static(spec, machine, STATIC, requests, STATIC_CHUNK)
    results = run_all(runs, options)
    base = results["static tp2-pp4", 0].requests_per_s
    series: dict[str, list[tuple[float, float]]] = {}
    transitions: dict[str, dict[int, int]] = {}
    for (name, size), result in results.items():
        if size:
            series.setdefault(name, []).append((size, result.requests_per_s))
            transitions.setdefault(name, {})[size] = result.num_transitions
    series["static tp2-pp4"] = [(TIER_GIB[0], base), (TIER_GIB[-1], base)]
    return {
        "series": series,
        "transitions": transitions,
        "plots": [
            {
                "kind": "lines",
                "title": "CodeLlama 34B on 8 L4, pp8 -> tp4-pp2, arXiv lengths",
                "x_label": "host tier, GiB",
                "y_label": "requests per second",
                "log_x": True,
                "series": series,
            }
        ],
    }


LOADS = (0.2, 0.4, 0.6, 0.8, 0.9)
"""Of the offline throughput of the static layout."""
ARRIVALS = {"poisson": 1.0, "bursts": 3.0}
"""Coefficient of variation of the times between arrivals."""


def arrivals(options: ExperimentOptions) -> dict[str, Any]:
    """End-to-end seconds over the rate at which requests come, smooth and in bursts."""
    spec, machine = model("codellama-34b"), paper_machine(L4, 8)
    number = options.requests(400)
    closed = offline(3000, 250, number)
    systems = {
        "static tp2-pp4": static(spec, machine, STATIC, closed, STATIC_CHUNK),
        "pp8 -> tp4-pp2": split(spec, machine, PAIR, closed, CHUNK),
    }
    most = run_all(systems, options)
    rate = most["static tp2-pp4"].requests_per_s
    runs: dict[tuple[str, str, float], Scenario] = {}
    for kind, cv in ARRIVALS.items():
        for load in LOADS:
            arriving = Arrivals(load * rate, cv)
            times = draw_arrivals(arriving, number, options.seed)
            requests = [Arrival(at_s, 3000, 250) for at_s in times]
            for name, system in systems.items():
                runs[kind, name, load * rate] = replace(system, requests=requests)
    results = run_all(runs, options)
    figures: dict[str, dict[str, list[dict[str, float]]]] = {}
    series: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for (kind, name, at), result in results.items():
        latency = result.latency_s["end_to_end"]
        figures.setdefault(kind, {}).setdefault(name, []).append(
            {"rate_per_s": at, "p50_s": latency.p50, "p99_s": latency.p99,
             "tokens_per_s": result.tokens_per_s}
        )  # fmt: skip
        series.setdefault(kind, {}).setdefault(f"{name}, p50", []).append((at, latency.p50))
        series[kind].setdefault(f"{name}, p99", []).append((at, latency.p99))
    return {
        "offline_requests_per_s": {name: one.requests_per_s for name, one in most.items()},
        "figures": figures,
        "plots": [
            {
                "kind": "lines",
                "title": f"CodeLlama 34B on 8 L4, arXiv lengths, arrivals: {kind}",
                "x_label": "requests per second that come",
                "y_label": "end-to-end seconds",
                "series": series[kind],
            }
            for kind in ARRIVALS
        ],
    }


BATCHES = (50, 100, 200, 500, 1000, 2000)


def batches(options: ExperimentOptions) -> dict[str, Any]:
    """Throughput over the number of requests of a job: what filling and emptying the pipeline,
    and the tail, cost short ones."""
    spec, machine = model("codellama-34b"), paper_machine(L4, 8)
    runs: dict[tuple[str, int], Scenario] = {}
    for published in BATCHES:
        number = options.requests(published)
        requests = offline(3000, 250, number)
        runs["static tp2-pp4", number] = static(spec, machine, STATIC, requests, STATIC_CHUNK)
        runs["pp8 -> tp4-pp2", number] = split(spec, machine, PAIR, requests, CHUNK)
    series: dict[str, list[tuple[float, float]]] = {}
    for (name, number), result in run_all(runs, options).items():
        series.setdefault(name, []).append((number, result.requests_per_s))
    return {
        "series": series,
        "plots": [
            {
                "kind": "lines",
                "title": "CodeLlama 34B on 8 L4, arXiv lengths",
                "x_label": "requests of the job",
                "y_label": "requests per second",
                "log_x": True,
                "series": series,
            }
        ],
    }


UNEQUAL = {"4 L4": "4xl4", "4 T4": "4xt4", "2 L4 + 2 T4": "2xl4+2xt4"}


def unequal(options: ExperimentOptions) -> dict[str, Any]:
    """An 8B model on four L4, four T4, and two of each: what the slower half costs either way."""
    spec = model("llama3-8b")
    requests = offline(1024, 128, options.requests(500))
    statics = ("pp4", "tp4", "tp2-pp2")
    pairs = (("pp4", "tp4"), ("pp4", "tp2-pp2"))
    runs: dict[tuple[str, str], Scenario] = {}
    for name, machine_name in UNEQUAL.items():
        machine: Machine = paper_machine(machine_name, 4)
        for text in statics:
            layout = ParallelLayout.parse(text)
            runs[name, text] = static(spec, machine, layout, requests, STATIC_CHUNK)
        for one, other in pairs:
            pair = ParallelLayout.parse(one), ParallelLayout.parse(other)
            runs[name, f"{one} -> {other}"] = split(spec, machine, pair, requests, CHUNK)
    figures: dict[str, dict[str, float]] = {name: {} for name in UNEQUAL}
    for (name, layouts), result in run_all(runs, options).items():
        figures[name][layouts] = result.requests_per_s
    return {
        "requests_per_s": figures,
        "plots": [
            {
                "kind": "bars",
                "title": "Llama 3 8B in float16, prompts of 1024, answers of 128 tokens",
                "y_label": "requests per second",
                "groups": figures,
            }
        ],
    }
