"""The paper's figure 11: a 70B model on eight A100, joined by PCIe and by NVLink."""

from __future__ import annotations

from typing import Any

from seesaw.simulate.experiments.models import model
from seesaw.simulate.experiments.runner import ExperimentOptions, run_all
from seesaw.simulate.experiments.systems import (
    every_layout,
    offline,
    paper_machine,
)
from seesaw.simulate.experiments.throughput import DATASETS
from seesaw.simulate.scenario import Scenario

NAMES = {"vllm": "vllm", "split": "pair"}
MACHINES = {"pcie": "8xa100-40-pcie", "nvlink": "8xa100-40-sxm"}
PUBLISHED = {
    "arxiv": {"vllm pcie": 0.61, "pair pcie": 0.89, "vllm nvlink": 1.0, "pair nvlink": 1.0},
    "sharegpt": {"vllm pcie": 0.62, "pair pcie": 0.82, "vllm nvlink": 1.0, "pair nvlink": 1.13},
}
"""Over vLLM with NVLink."""


def a100(options: ExperimentOptions) -> dict[str, Any]:
    """A 70B model on 8 A100 with PCIe and NVLink: throughput over vLLM's with NVLink."""
    spec = model("llama2-70b")
    runs: dict[tuple[str, str, str, int], Scenario] = {}
    for dataset, (prompt, answer, number) in DATASETS.items():
        requests = offline(prompt, answer, options.requests(number))
        for link, name in MACHINES.items():
            machine = paper_machine(name, 8)
            found = every_layout(spec, machine, requests)
            for (system, layouts, chunk), one in found.items():
                runs[dataset, f"{NAMES[system]} {link}", layouts, chunk] = one
    best: dict[str, dict[str, tuple[float, str]]] = {name: {} for name in DATASETS}
    for (dataset, system, layouts, _), result in run_all(runs, options).items():
        reached = result.requests_per_s, layouts
        best[dataset][system] = max(best[dataset].get(system, (0.0, "")), reached)
    ours = {
        dataset: {system: rate / systems["vllm nvlink"][0] for system, (rate, _) in systems.items()}
        for dataset, systems in best.items()
    }
    return {
        "normalised": ours,
        "published": PUBLISHED,
        "layouts": {
            dataset: {system: layouts for system, (_, layouts) in systems.items()}
            for dataset, systems in best.items()
        },
        "plots": [
            {
                "kind": "bars",
                "title": f"Llama 2 70B on 8 A100, {dataset} lengths",
                "y_label": "throughput over vLLM with NVLink",
                "groups": {
                    system: {"simulated": ours[dataset][system], "published": figure}
                    for system, figure in PUBLISHED[dataset].items()
                },
            }
            for dataset in DATASETS
        ],
    }
