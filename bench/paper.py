"""Runs the experiments of docs/paper.md and docs/schedulers.md, keeps their figures in
bench/paper/, draws their plots and fills the pages' tables.

    python bench/paper.py                      # all experiments, then the pages
    python bench/paper.py pools ratio          # some, then the pages
    python bench/paper.py --page               # tables and plots of the figures that are there
    python bench/paper.py --page --check       # says whether the pages have them

Everything here is simulated.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from seesaw.api.plots import draw
from seesaw.simulate.experiments import EXPERIMENTS, find
from seesaw.simulate.experiments.runner import ExperimentOptions

ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "bench" / "paper"
PLOTS = ROOT / "docs" / "plots"
PAGES = (ROOT / "docs" / "paper.md", ROOT / "docs" / "schedulers.md")
Row = Sequence[object]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(EXPERIMENTS))
    parser.add_argument("--jobs", type=int, default=1, help="simulations at once (default 1)")
    parser.add_argument("--page", action="store_true", help="run nothing")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where it would")
    given = parser.parse_args()
    if not given.page:
        for name in given.names or EXPERIMENTS:
            run(name, given.jobs)
    figures = {path.stem: json.loads(path.read_text()) for path in sorted(FIGURES.glob("*.json"))}
    pages = {page: filled(page.read_text(), figures) for page in PAGES}
    if given.check:
        return int(any(text != page.read_text() for page, text in pages.items()))
    for page, text in pages.items():
        page.write_text(text)
    for name, found in figures.items():
        for index, plot in enumerate(found.get("plots", ())):
            draw(plot, PLOTS / f"{name}-{index + 1}.svg")
    return 0


def run(name: str, jobs: int) -> None:
    began_s = time.perf_counter()
    with tqdm(desc=name, unit=" simulations") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n if done >= bar.n else 0)

        found = find(name)(ExperimentOptions(jobs=jobs, progress=progress))
    FIGURES.mkdir(exist_ok=True)
    (FIGURES / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"{name}: {time.perf_counter() - began_s:.0f} s", file=sys.stderr)


# -- the page ---------------------------------------------------------------------------------


def filled(page: str, figures: Mapping[str, Mapping[str, Any]]) -> str:
    """`page` with the table of every mark `<!-- table NAME -->` .. `<!-- end -->` made anew."""

    def table(match: re.Match[str]) -> str:
        name = match[1]
        if name not in TABLES:
            raise SystemExit(f"no table {name!r}. Known: {', '.join(TABLES)}.")
        experiment = TABLES[name][0]
        if experiment not in figures:
            told = f"Not run: `python bench/paper.py {experiment}`."
            return f"<!-- table {name} -->\n{told}\n<!-- end -->"
        rows = list(TABLES[name][1](figures[experiment]))
        head, *rest = [f"| {' | '.join(map(str, row))} |" for row in rows]
        rule = "|" + " --- |" * len(rows[0])
        return "\n".join([f"<!-- table {name} -->", head, rule, *rest, "<!-- end -->"])

    return re.sub(r"<!-- table ([\w-]+) -->.*?<!-- end -->", table, page, flags=re.DOTALL)


def cells(found: Mapping[str, Any]) -> Iterator[Row]:
    yield (
        "lengths", "model", "gain over the best here", "over the paper's layout",
        "over our own static", "best static", "paper's", "of our best", "best pair", "paper's",
        "of our best",
    )  # fmt: skip
    gains = ("gain", "gain_over_published_layout", "gain_over_own_static")
    for cell in found["cells"]:
        best, published, of_best = (
            cell["best"], cell["published_best"], cell["published_best_of_ours"],
        )  # fmt: skip
        yield (
            cell["dataset"], cell["model"],
            *("" if cell[name] is None else f"{cell[name]:.2f}" for name in gains),
            best["vllm"], published["vllm"], share(of_best["vllm"]),
            best["split"], published["split"], share(of_best["split"]),
        )  # fmt: skip
    theirs = found["published_gain"]
    yield (
        f"geometric mean, paper {theirs:.2f}", "",
        *(f"**{found[name]:.2f}** ({found[name] / theirs - 1:+.0%})" for name in gains[:2]),
        f"{found[gains[2]]:.2f}", *[""] * 6,
    )  # fmt: skip


def share(value: float) -> str:
    return f"{value:.0%}" if value else "does not fit"


def series(found: Mapping[str, Any], digits: int = 2) -> Iterator[Row]:
    lines = found["series"]
    xs = sorted({x for points in lines.values() for x, _ in points})
    yield ("", *(f"{x:g}" for x in xs))
    for name, points in lines.items():
        known = dict(map(tuple, points))
        yield (name, *(f"{known[x]:.{digits}f}" if x in known else "" for x in xs))


def ratio(found: Mapping[str, Any]) -> Iterator[Row]:
    yield from series(found)
    yield ("best static", *(name for _, name in found["best_static_in_turn"]))
    yield ("pair over it", *(f"{gain:.2f}" for _, gain in found["pair_over_best_static"]))


def links(found: Mapping[str, Any]) -> Iterator[Row]:
    yield ("all-reduces at", *(f"{x:g}x" for x, _ in found["best_static_in_turn"]))
    yield ("best static", *(name for _, name in found["best_static_in_turn"]))
    yield ("best pair", *(name for _, name in found["best_pair_in_turn"]))
    yield ("pair over static", *(f"{gain:.2f}" for _, gain in found["pair_over_best_static"]))


def a100(found: Mapping[str, Any]) -> Iterator[Row]:
    systems = ("vllm pcie", "pair pcie", "vllm nvlink", "pair nvlink")
    yield ("lengths", *(f"{name}: ours (paper)" for name in systems))
    for dataset, ours in found["normalised"].items():
        theirs = found["published"][dataset]
        yield (dataset, *(f"{ours[name]:.2f} ({theirs[name]:.2f})" for name in systems))


def pools(found: Mapping[str, Any]) -> Iterator[Row]:
    published = found["published"]
    yield ("", "seconds", "measured", "over vLLM", "measured", "transitions")
    for name, seconds in found["seconds"].items():
        measured = published.get(f"{name}_s")
        yield (
            name,
            f"{seconds:.0f}",
            "" if measured is None else " to ".join(f"{s:g}" for s in dict.fromkeys(measured)),
            f"{found['over_vllm'][name]:.2f}" if name in found["over_vllm"] else "",
            published.get(name, ""),
            f"{found['transitions'][name]:g}",
        )


def arrivals(found: Mapping[str, Any]) -> Iterator[Row]:
    yield ("arrivals", "layouts", "requests/s", "p50, s", "p99, s")
    for kind, systems in found["figures"].items():
        for name, points in systems.items():
            for one in points:
                yield (
                    kind, name, f"{one['rate_per_s']:.2f}", f"{one['p50_s']:.0f}",
                    f"{one['p99_s']:.0f}",
                )  # fmt: skip


def unequal(found: Mapping[str, Any]) -> Iterator[Row]:
    machines = found["requests_per_s"]
    names = list(dict.fromkeys(name for rates in machines.values() for name in rates))
    yield ("", *names)
    for machine, rates in machines.items():
        yield (machine, *(f"{rates[name]:.2f}" if name in rates else "" for name in names))


def grid(key: str) -> Callable[[Mapping[str, Any]], Iterator[Row]]:
    """Rows by name, or by several, with a column for each figure."""

    def flat(rows: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
        for name, row in rows.items():
            if any(isinstance(one, Mapping) for one in row.values()):
                yield from flat(row, f"{before}{name}, ")
            else:
                yield before + name, row

    def table(found: Mapping[str, Any]) -> Iterator[Row]:
        rows = dict(flat(found[key]))
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        yield ("", *(column.replace("_", " ") for column in columns))
        for name, row in rows.items():
            yield (name, *(figure(row.get(column)) for column in columns))

    return table


def figure(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


TABLES: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], Iterator[Row]]]] = {
    "throughput-a10": ("throughput-a10", cells),
    "throughput-l4": ("throughput-l4", cells),
    "ratio": ("ratio", ratio),
    "links": ("links", links),
    "a100": ("a100", a100),
    "pools": ("pools", pools),
    "tier": ("tier", series),
    "arrivals": ("arrivals", arrivals),
    "batches": ("batches", series),
    "unequal": ("unequal", unequal),
    "sarathi-stages": ("sarathi-stages", grid("chunks_against_whole_prompts")),
    "sarathi-replicas": ("sarathi-replicas", grid("replicas")),
    "sarathi-card": ("sarathi-card", grid("gains")),
    "serve-capacity": ("serve-capacity", grid("requests_per_s")),
    "serve-parts": ("serve-parts", grid("latencies")),
    "serve-stalls": ("serve-stalls", grid("longest_gap_s")),
    "layered-experts": ("layered-experts", grid("expert_loads")),
    "layered-load": ("layered-load", grid("figures")),
    "nexus": ("nexus", grid("latencies")),
    "nexus-rates": ("nexus", grid("throughput_per_s")),
}

if __name__ == "__main__":
    sys.exit(main())
