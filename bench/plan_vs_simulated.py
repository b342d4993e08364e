"""The planner's estimates against the simulator: errors in throughput, and what its choices cost.

Cells are drawn from a grid of models, machines, workloads and numbers of requests. In each cell the
planner ranks all candidates; every one of them is then simulated with the settings that the planner
gave it. Both use the same cost model, so what differs is the closed forms.

    python bench/plan_vs_simulated.py --cells 40 --output-json figures.json
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

from seesaw.config import EngineConfig
from seesaw.errors import DoesNotFit
from seesaw.plan.estimate import Estimate
from seesaw.plan.machine_files import read_machines
from seesaw.plan.search import search
from seesaw.plan.workload import parse_workload
from seesaw.simulate.experiments.models import model
from seesaw.simulate.simulation import Scenario, simulate

MODELS = {"8B": "llama3-8b", "15B": "llama3-15b", "34B": "codellama-34b", "70B": "llama2-70b"}
MACHINES = ("l4", "a10g", "a100-80-sxm", "h100-sxm")
COUNTS = (4, 8)
WORKLOADS = ("3000:250", "350:300", "1024:1024", "128:512")
REQUESTS = (50, 500, 2000)


@dataclass(frozen=True, slots=True)
class Cell:
    model: str
    machine: str
    workload: str
    num_requests: int

    def __str__(self) -> str:
        return f"{self.model} {self.machine} {self.workload} x{self.num_requests}"


@dataclass(frozen=True, slots=True)
class Compared:
    """One candidate; seconds of the whole job."""

    cell: Cell
    layouts: str
    chunk: int
    estimated_s: float
    simulated_s: float

    @property
    def error(self) -> float:
        """Of the estimated throughput, as a fraction of the simulated one."""
        return self.simulated_s / self.estimated_s - 1


def grid() -> list[Cell]:
    machines = [f"{count}x{name}" for count, name in product(COUNTS, MACHINES)]
    return [Cell(*one) for one in product(MODELS, machines, WORKLOADS, REQUESTS)]


def compare(cell: Cell, most: int | None = None) -> list[Compared]:
    """All candidates of a cell, or the `most` fastest by estimate, in their estimated order; none
    where nothing fits."""
    spec, (machine,) = model(MODELS[cell.model]), read_machines(cell.machine)
    workload = parse_workload(cell.workload)
    lengths = workload.draw(cell.num_requests, seed=0)
    longest = max(prompt + answer for prompt, answer in lengths)
    config = EngineConfig(model=cell.model, max_model_len=longest)
    try:
        plan = search(spec, (machine,), workload, cell.num_requests, config)
    except DoesNotFit:
        return []

    def run(one: Estimate) -> Compared:
        settings = replace(config, max_num_batched_tokens=one.max_num_batched_tokens)
        requests = [(0.0, prompt, answer) for prompt, answer in lengths]
        result = simulate(
            Scenario(
                spec=spec, machine=machine, layouts=(one.prefill, one.decode), config=settings,
                requests=requests,
            )
        )  # fmt: skip
        return Compared(cell, one.name, one.max_num_batched_tokens, one.elapsed_s, result.elapsed_s)

    return [run(one) for one in plan.candidates[:most]]


def summary(cells: Sequence[Sequence[Compared]]) -> dict[str, float]:
    """`choice` figures: simulated throughput of the estimate's first as a fraction of the best
    simulated one of the cell."""
    errors = sorted(abs(one.error) for cell in cells for one in cell)
    choices = [min(one.simulated_s for one in cell) / cell[0].simulated_s for cell in cells if cell]
    return {
        "cells": len(choices),
        "candidates": len(errors),
        "median_error": statistics.median(errors),
        "p90_error": errors[int(0.9 * len(errors))],
        "largest_error": errors[-1],
        "choices_within_5_percent": sum(one >= 0.95 for one in choices) / len(choices),
        "worst_choice": min(choices),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=int, default=40, help="drawn from the grid")
    parser.add_argument("--top", type=int, help="candidates of a cell to simulate (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-json", type=Path)
    args = parser.parse_args()
    cells = random.Random(args.seed).sample(grid(), args.cells)
    found: list[list[Compared]] = []
    for cell in cells:
        start_s = time.perf_counter()
        compared = compare(cell, args.top)
        took_s = time.perf_counter() - start_s
        if not compared:
            print(f"{cell}: nothing fits")
            continue
        found.append(compared)
        worst = max(compared, key=lambda one: abs(one.error))
        best = min(compared, key=lambda one: one.simulated_s)
        print(
            f"{cell}: {len(compared)} candidates, worst error {worst.error:+.1%} "
            f"({worst.layouts}, {worst.chunk}); chosen {compared[0].layouts} reaches "
            f"{best.simulated_s / compared[0].simulated_s:.3f} of {best.layouts} ({took_s:.0f} s)",
            flush=True,
        )
    figures = summary(found)
    print(json.dumps(figures, indent=1))
    if args.output_json is not None:
        rows = [{**asdict(one), "error": one.error} for cell in found for one in cell]
        args.output_json.write_text(json.dumps({"summary": figures, "rows": rows}, indent=1))


if __name__ == "__main__":
    sys.exit(main())
