"""The paper's sweeps: over the length of answers (figure 13) and over the speed of links (figure
14), with the same systems as its throughput cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from seesaw.layout.parallel import ParallelLayout
from seesaw.plan.curve import Curve
from seesaw.plan.machine import Links
from seesaw.simulate.experiments.models import model
from seesaw.simulate.experiments.runner import ExperimentOptions, best_rates
from seesaw.simulate.experiments.systems import (
    CHUNKS,
    PREFILL_TOKENS,
    baseline,
    every_layout,
    offline,
    paper_machine,
    split,
)
from seesaw.simulate.scenario import Scenario

A10 = "g5.48xlarge"
RATIO_PROMPT = 3000
RATIO_ANSWERS = (1, 75, 150, 300, 450, 600, 900)
RATIO_STATIC = ("pp8", "tp2-pp4", "tp4-pp2")
RATIO_PAIR = ("pp8", "tp4-pp2")
LINK_FACTORS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)


def ratio(options: ExperimentOptions) -> dict[str, Any]:
    """Requests per second of a 70B model on 8 A10G over answer : prompt."""
    spec, machine = model("llama2-70b"), paper_machine(A10, 8)
    runs: dict[tuple[float, str, int], Scenario] = {}
    for answer in RATIO_ANSWERS:
        requests = offline(RATIO_PROMPT, answer, options.requests(300))
        x = answer / RATIO_PROMPT
        for name in RATIO_STATIC:
            layout = ParallelLayout.parse(name)
            for chunk in CHUNKS:
                runs[x, name, chunk] = baseline(spec, machine, layout, requests, chunk)
        pair = _pair(*RATIO_PAIR)
        for chunk in PREFILL_TOKENS:
            runs[x, " -> ".join(RATIO_PAIR), chunk] = split(spec, machine, pair, requests, chunk)
    series = best_rates(runs, options)
    statics = {name: series[name] for name in RATIO_STATIC}
    return {
        "series": series,
        "best_static_in_turn": _in_turn(statics),
        "pair_over_best_static": _over(series[" -> ".join(RATIO_PAIR)], statics),
        "published": "pp8, tp2-pp4 and tp4-pp2 are best in turn; pp8 -> tp4-pp2 is best everywhere",
        "plots": [
            {
                "kind": "lines",
                "title": "Llama 2 70B on 8 A10G, prompts of 3000 tokens",
                "x_label": "answer tokens per prompt token",
                "y_label": "requests per second",
                "series": series,
            }
        ],
    }


def links(options: ExperimentOptions) -> dict[str, Any]:
    """Requests per second of a 34B model on 8 A10G, all-reduces made faster and slower."""
    spec, machine = model("codellama-34b"), paper_machine(A10, 8)
    requests = offline(3000, 250, options.requests(300))
    runs: dict[tuple[float, str, int], Scenario] = {}
    for factor in LINK_FACTORS:
        there = replace(machine, links=scaled(machine.links, factor))
        found = every_layout(spec, there, requests)
        runs |= {(factor, name, chunk): one for (_, name, chunk), one in found.items()}
    series = best_rates(runs, options)
    statics = {name: points for name, points in series.items() if "->" not in name}
    pairs = {name: points for name, points in series.items() if "->" in name}
    shown = {"best static": envelope(statics), "best pair": envelope(pairs), **statics}
    return {
        "series": series,
        "best_static_in_turn": _in_turn(statics),
        "best_pair_in_turn": _in_turn(pairs),
        "pair_over_best_static": _over(envelope(pairs), statics),
        "published": "a pair is best from 0.1x to 50x; slow links favour stages, fast ones tp",
        "plots": [
            {
                "kind": "lines",
                "title": "CodeLlama 34B on 8 A10G, arXiv lengths",
                "x_label": "speed of all-reduces, times that of the machine",
                "y_label": "requests per second",
                "log_x": True,
                "series": shown,
            }
        ],
    }


def scaled(links: Links, factor: float) -> Links:
    """All-reduces `factor` times as fast, as the paper's projection has it: sends stay."""
    return replace(
        links,
        bus_bytes_per_s=links.bus_bytes_per_s * factor,
        latency_s=Curve(links.latency_s.xs, tuple(y / factor for y in links.latency_s.ys)),
        measured={},
    )


Points = Sequence[tuple[float, float]]


def envelope(series: Mapping[str, Points]) -> list[tuple[float, float]]:
    """The best of all at each x."""
    best: dict[float, float] = {}
    for points in series.values():
        for x, y in points:
            best[x] = max(best.get(x, 0.0), y)
    return sorted(best.items())


def _in_turn(series: Mapping[str, Points]) -> list[tuple[float, str]]:
    """Which is best at each x."""
    return [
        (x, max(series, key=lambda name: dict(series[name]).get(x, 0.0)))
        for x, _ in envelope(series)
    ]


def _over(pair: Points, statics: Mapping[str, Points]) -> list[tuple[float, float]]:
    best = dict(envelope(statics))
    return [(x, y / best[x]) for x, y in pair]


def _pair(prefill: str, decode: str) -> tuple[ParallelLayout, ParallelLayout]:
    return ParallelLayout.parse(prefill), ParallelLayout.parse(decode)
