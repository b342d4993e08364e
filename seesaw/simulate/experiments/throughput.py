"""The paper's figure 10: throughput of three models on A10G and L4, on two datasets, in the best
single layout and in the best two.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from statistics import geometric_mean
from typing import Any, NamedTuple

from seesaw.layout.pairs import layouts_for
from seesaw.simulate.experiments.models import model
from seesaw.simulate.experiments.runner import ExperimentOptions, run_best
from seesaw.simulate.experiments.systems import (
    CHUNKS,
    Candidate,
    every_layout,
    offline,
    paper_machine,
    static,
)
from seesaw.simulate.results import Result
from seesaw.simulate.scenario import Scenario

DATASETS = {"arxiv": (3000, 250, 500), "sharegpt": (350, 300, 2000)}
"""Prompt, answer, requests."""
MODELS = {"llama3-15b": 4, "codellama-34b": 8, "llama2-70b": 8}
"""Devices that the paper gives them."""
PUBLISHED_GAIN = {"a10": 1.45, "l4": 1.29}
"""Geometric means over the six cells of a device; single cells were published without figures."""
GAINS = {
    "gain": "over the best here",
    "gain_over_published_layout": "over the paper's layout",
    "gain_over_own_static": "over our own static",
}
_MACHINES = {"a10": "g5.48xlarge", "l4": "g6.48xlarge"}


class Cell(NamedTuple):
    dataset: str
    model: str


# What the paper's sweep found best: vLLM's layout, and this system's two (figure 10).
PUBLISHED: Mapping[str, Mapping[Cell, tuple[str, str]]] = {
    "a10": {
        Cell("arxiv", "llama3-15b"): ("dp2-tp2", "pp4 -> tp4"),
        Cell("arxiv", "codellama-34b"): ("dp2-tp2-pp2", "dp2-pp4 -> dp2-tp4"),
        Cell("arxiv", "llama2-70b"): ("tp2-pp4", "pp8 -> tp4-pp2"),
        Cell("sharegpt", "llama3-15b"): ("dp2-pp2", "pp4 -> tp4"),
        Cell("sharegpt", "codellama-34b"): ("dp2-tp2-pp2", "dp2-pp4 -> dp2-tp4"),
        Cell("sharegpt", "llama2-70b"): ("tp4-pp2", "pp8 -> tp4-pp2"),
    },
    "l4": {
        Cell("arxiv", "llama3-15b"): ("tp2-pp2", "pp4 -> tp4"),
        Cell("arxiv", "codellama-34b"): ("dp2-tp4", "dp2-pp4 -> dp2-tp4"),
        Cell("arxiv", "llama2-70b"): ("tp4-pp2", "pp8 -> tp4-pp2"),
        Cell("sharegpt", "llama3-15b"): ("pp4", "pp4 -> tp4"),
        Cell("sharegpt", "codellama-34b"): ("dp2-tp4", "pp8 -> tp4-pp2"),
        Cell("sharegpt", "llama2-70b"): ("tp4-pp2", "pp8 -> tp4-pp2"),
    },
}


def a10(options: ExperimentOptions) -> dict[str, Any]:
    """The paper's figure 10 on A10G: gains of two layouts over one, six cells."""
    return _device("a10", options)


def l4(options: ExperimentOptions) -> dict[str, Any]:
    """The paper's figure 10 on L4: gains of two layouts over one, six cells."""
    return _device("l4", options)


def _device(device: str, options: ExperimentOptions) -> dict[str, Any]:
    runs: dict[tuple[Cell, str, str, int], Scenario] = {
        (cell, *key): scenario
        for cell in PUBLISHED[device]
        for key, scenario in _scenarios(device, cell, options).items()
    }

    def groups(key: tuple[Cell, str, str, int]) -> Iterator[Hashable]:
        cell, system, layouts, _ = key
        yield cell, system
        if layouts in PUBLISHED[device][cell]:
            yield cell, system, layouts

    results = run_best(runs, groups, options)
    cells = []
    for cell, published in PUBLISHED[device].items():
        own = {key[1:]: result for key, result in results.items() if key[0] == cell}
        cells.append(_figures(cell, published, own))
    return {
        "machine": _MACHINES[device],
        "published_gain": PUBLISHED_GAIN[device],
        **{
            name: geometric_mean([one[name] for one in cells if one[name] is not None])
            for name in ("gain", "gain_over_own_static", "gain_over_published_layout")
        },
        "cells": cells,
        "plots": [
            {
                "kind": "bars",
                "title": f"Two layouts over the best of vLLM 0.5.4, {device.upper()}",
                "y_label": "throughput gain",
                "groups": {
                    f"{one['dataset']} {one['model']}": {
                        title: one[name] for name, title in GAINS.items() if one[name] is not None
                    }
                    for one in cells
                },
            }
        ],
    }


def _scenarios(device: str, cell: Cell, options: ExperimentOptions) -> dict[Candidate, Scenario]:
    spec = model(cell.model)
    count = MODELS[cell.model]
    machine = paper_machine(_MACHINES[device], count)
    prompt, answer, number = DATASETS[cell.dataset]
    requests = offline(prompt, answer, options.requests(number))
    runs = every_layout(spec, machine, requests)
    for layout in layouts_for(count, spec):
        for chunk in CHUNKS:
            runs["static", layout.short, chunk] = static(spec, machine, layout, requests, chunk)
    return runs


def _figures(
    cell: Cell, published: tuple[str, str], results: Mapping[Candidate, Result]
) -> dict[str, Any]:
    ranked: dict[str, dict[str, float]] = {}
    for system in ("vllm", "static", "split"):
        rates: dict[str, float] = {}
        for (own, layouts, _), result in results.items():
            if own == system:
                rates[layouts] = max(rates.get(layouts, 0.0), result.requests_per_s)
        ranked[system] = dict(sorted(rates.items(), key=lambda item: -item[1]))
    best = {system: next(iter(rates)) for system, rates in ranked.items()}
    top = {system: ranked[system][layouts] for system, layouts in best.items()}
    return {
        **cell._asdict(),
        "best": best,
        "published_best": {"vllm": published[0], "split": published[1]},
        "published_best_of_ours": {
            "vllm": ranked["vllm"].get(published[0], 0.0) / top["vllm"],
            "split": ranked["split"].get(published[1], 0.0) / top["split"],
        },
        "gain": top["split"] / top["vllm"],
        # Nothing where the layout that the paper's baseline ran in does not fit here.
        "gain_over_published_layout": (
            top["split"] / ranked["vllm"][published[0]] if published[0] in ranked["vllm"] else None
        ),
        "gain_over_own_static": top["split"] / top["static"],
        "requests_per_s": ranked,
    }
