"""Tables and plots of what `shaped_link.py` has measured so far.

usage: python bench/shaped_link_report.py [--results FILE] [--plots FOLDER]

Rates are those of the whole job, its tail included; the table of steady states leaves the tail out.
A gain is over the better of the two static layouts, and beside it stands what the simulator said
for the machine as it was calibrated over that link. Of several rounds medians are taken.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shaped_link_cells import ABLATIONS, BASE, CELLS, SYSTEMS, WEAK_CELLS, Cell

HERE = Path(__file__).parent
STATIC = ("tp2", "pp2")
SPLIT, AUTO = "pp2 -> tp2", "auto"
MBIT = {"300mbit": 300, "100mbit": 100, "1gbit": 1e3, "3gbit": 3e3, "10gbit": 1e4}

Runs = Mapping[str, Mapping[str, list[dict[str, Any]]]]
"""By cell and system."""
Figure = Callable[[dict[str, Any]], float]


def measured(run: dict[str, Any]) -> float:
    return float(run["output_tokens_per_s"])


def predicted(run: dict[str, Any]) -> float:
    return float(run["simulated"]["output_tokens_per_s"])


def steady(run: dict[str, Any]) -> float:
    return float(run["steady_output_tokens_per_s"] or 0.0)


def read_runs(path: Path) -> Runs:
    found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for run in json.loads(path.read_text()).values():
        if "simulated" in run:
            found[Cell(**run["cell"]).name][run["system"]].append(run)
    return found


def median(runs: Sequence[dict[str, Any]], figure: Figure) -> float:
    return statistics.median(map(figure, runs))


class CellFigures:
    """One cell's medians."""

    def __init__(self, runs: Mapping[str, list[dict[str, Any]]], figure: Figure) -> None:
        self.of = {name: median(own, figure) for name, own in runs.items()}

    @property
    def best_static(self) -> float | None:
        found = [self.of[name] for name in STATIC if name in self.of]
        return max(found) if len(found) == len(STATIC) else None

    def gain(self, name: str) -> float | None:
        if self.best_static is None or name not in self.of:
            return None
        return self.of[name] / self.best_static


def number(value: float | None, form: str = ".1f") -> str:
    return "" if value is None else format(value, form)


def cell_table(runs: Runs, figure: Figure) -> list[str]:
    lines = [
        "| hidden | resident | input | output | link | tp2 | pp2 | pp2 -> tp2 | auto "
        "| gain of pp2 -> tp2 | predicted | auto / best static | auto ran |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cell in (*CELLS, *WEAK_CELLS):
        if cell.name not in runs:
            continue
        own = runs[cell.name]
        here, foreseen = CellFigures(own, figure), CellFigures(own, predicted)
        values = [
            f"{number(here.of.get(name))} ({number(foreseen.of.get(name))})" if name in own else ""
            for name in (*STATIC, SPLIT, AUTO)
        ]
        lines.append(
            f"| {cell.hidden} | {cell.resident} | {cell.input_len} | {cell.output_len} | "
            f"{cell.rate} | "
            + " | ".join(values)
            + f" | {number(here.gain(SPLIT), '.2f')} | {number(foreseen.gain(SPLIT), '.2f')} | "
            f"{number(here.gain(AUTO), '.2f')} | {ran(own.get(AUTO, ()))} |"
        )
    return lines


def ran(runs: Sequence[dict[str, Any]]) -> str:
    """The layouts that `auto` took."""
    found = {tuple(run["layouts"].values()) for run in runs}
    return ", ".join(
        short(prefill) if prefill == decode else f"{short(prefill)} -> {short(decode)}"
        for prefill, decode in sorted(found)
    )


def short(layout: str) -> str:
    parts = [part for part in layout.split("-") if part[2:] != "1"]
    return "-".join(parts) or "tp1"


def link_table(runs: Runs) -> list[str]:
    """The counters of the link against the plan's bytes."""
    lines = ["| cell | system | counted / planned |", "| --- | --- | --- |"]
    for cell in CELLS:
        for name, own in runs.get(cell.name, {}).items():
            ratios = [
                sum(run["link_counted_bytes"]) / sum(run["link_planned_bytes"])
                for run in own
                if run["link_counted_bytes"] and sum(run["link_planned_bytes"])
            ]
            if ratios:
                lines.append(f"| {cell.name} | {name} | {statistics.median(ratios):.3f} |")
    return lines


def ablation_table(runs: Runs) -> list[str]:
    own = runs.get(BASE.name, {})
    base = own.get(ABLATIONS[0].name)
    if not base:
        return ["Not measured yet."]
    lines = [
        "| | tokens/s | relative | transitions | visible in them, s | pieces of the tier copied |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for system in ABLATIONS:
        if system.name not in own:
            continue
        found = own[system.name]
        lines.append(
            f"| {system.name} | {median(found, measured):.1f} | "
            f"{median(found, measured) / median(base, measured):.2f} | "
            f"{median(found, lambda run: run['num_transitions']):.0f} | "
            f"{median(found, lambda run: run['transition_visible_s']):.3f} | "
            f"{median(found, lambda run: run['tier_pieces']):.0f} |"
        )
    return lines


def draw(runs: Runs, folder: Path) -> list[Path]:
    """Throughput over the link's rate, and over the length of answers (figures 14 and 13 of the
    Seesaw paper)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    over_rate = [
        cell for cell in CELLS if (cell.hidden, cell.resident, cell.output_len) == (2048, 8, 128)
    ]
    over_length = [
        cell for cell in CELLS if (cell.hidden, cell.resident, cell.rate) == (2048, 8, "1gbit")
    ]
    plans = (
        ("shaped_link_rate", "link, Mbit/s (none: 40000)", over_rate,
         lambda cell: MBIT.get(cell.rate, 4e4)),
        ("shaped_link_ratio", "output : input", over_length,
         lambda cell: cell.output_len / cell.input_len),
    )  # fmt: skip
    paths = []
    for name, label, cells, place in plans:
        cells = sorted((cell for cell in cells if cell.name in runs), key=place)
        if not cells:
            continue
        figure, axes = pyplot.subplots(figsize=(6.4, 4.0))
        for system in (one.name for one in SYSTEMS):
            points = [
                (place(cell), runs[cell.name][system])
                for cell in cells
                if system in runs[cell.name]
            ]
            if not points:
                continue
            at = [x for x, _ in points]
            (line,) = axes.plot(
                at, [median(own, measured) for _, own in points], "o-", label=system
            )
            foreseen = [median(own, predicted) for _, own in points]
            axes.plot(at, foreseen, ":", color=line.get_color(), linewidth=1)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(label)
        axes.set_ylabel("tokens of answer per second")
        axes.set_title("two ranks of one core; dotted: predicted by the simulator", fontsize=9)
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
        figure.tight_layout()
        paths.append(folder / f"{name}.svg")
        figure.savefig(paths[-1])
        pyplot.close(figure)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", default=str(HERE / "results" / "shaped_link.json"))
    parser.add_argument("--plots", help="folder for pictures")
    args = parser.parse_args()
    runs = read_runs(Path(args.results))
    for title, lines in (
        (
            "Tokens of answer per second, whole job: measured (predicted)",
            cell_table(runs, measured),
        ),
        ("Before the tail", cell_table(runs, steady)),
        (f"One decision at a time ({BASE.name})", ablation_table(runs)),
        ("Bytes on the link", link_table(runs)),
    ):
        print(f"\n### {title}\n")
        print("\n".join(lines))
    if args.plots:
        for path in draw(runs, Path(args.plots)):
            print(f"\n{path}")


if __name__ == "__main__":
    main()
