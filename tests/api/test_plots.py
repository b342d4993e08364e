"""Plots: files that say what they show, the same bytes for the same figures, clear refusals."""

from __future__ import annotations

import random
import re
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from seesaw.api import plots
from seesaw.api.plots.charts import MARKED, MAX_STEPS, _steps
from seesaw.api.plots.lanes import KIND_COLOURS, MAX_VECTORS
from seesaw.errors import ConfigError
from seesaw.latency import Spread, quantile

pytest.importorskip("matplotlib")

SPANS = [
    (0, "compute", "prefill 0", 0.0, 1.0),
    (0, "store", "store 0", 1.0, 1.5),
    (0, "compute", "to decode", 1.0, 1.25),
    (1, "compute", "decode 1", 1.25, 2.0),
    (1, "load", "load 1", 1.25, 1.5),
]
SWEEP = {"tp4 & <more>": [(1.0, 5.0), (0.1, 2.0)], "_pp4": [(0.1, 1.0)]}
LATENCIES = {"static": [3.0, 1.0, 2.0], "seesaw": [0.5]}
CELLS = {"15B L4": {"ours": 1.3, "Seesaw paper": 1.29}, "70B $": {"ours": 1.6}}
STEPS = {"prefill": [(700.0, 9e11)], "decode": [(2.0, 7e10), (9.0, 2e11)]}

Draw = Callable[[Path], None]
PLOTS: dict[str, tuple[Draw, list[str]]] = {
    "timeline": (
        lambda path: plots.timeline(iter(SPANS), path, "One replica"),
        ["rank 0 compute", "rank 1 compute", "store", "load", "prefill", "decode", "to decode",
         "time (s)", "One replica (simulated)"],
    ),
    "lines": (
        lambda path: plots.lines(SWEEP, path, "Sweep", "link rate (GB/s)", "tokens/s", log_x=True),
        [*SWEEP, "link rate (GB/s)", "tokens/s", "Sweep (simulated)"],
    ),
    "percentiles": (
        lambda path: plots.percentiles(LATENCIES, path, "Measured", simulated=False),
        ["static: p50 2, p90 2.8, p99 2.98", "seesaw: p50 0.5, p90 0.5, p99 0.5", "latency (s)",
         "fraction of requests", "Measured"],
    ),
    "bars": (
        lambda path: plots.bars(CELLS, path, "Simulated $/M in $", "gain", baseline=1.0),
        [*CELLS, "ours", "Seesaw paper", "1.29", "gain", "Simulated $/M in $"],
    ),
    "roofline": (
        lambda path: plots.roofline(STEPS, path, "Run", bytes_per_s=4.5e10, flops_per_s=1.07e12),
        [*STEPS, "limits: 45.0 GB/s, 1,070 GFLOP/s", "flops per byte that must be read or written",
         "GFLOP/s", "Run"],
    ),
}  # fmt: skip


def texts(path: Path) -> set[str]:
    """What an SVG says, as a reader of it would see it."""
    found = ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")
    return {" ".join("".join(text.itertext()).split()) for text in found}


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_names_all_that_it_shows(name: str, tmp_path: Path) -> None:
    draw, expected = PLOTS[name]
    draw(tmp_path / "plot.svg")
    assert set(expected) <= texts(tmp_path / "plot.svg")
    assert [file.name for file in tmp_path.iterdir()] == ["plot.svg"]


@pytest.mark.parametrize("suffix", [".svg", ".png"])
@pytest.mark.parametrize("name", PLOTS)
def test_the_same_plot_is_the_same_file(name: str, suffix: str, tmp_path: Path) -> None:
    draw, _ = PLOTS[name]
    first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
    draw(first)
    draw(second)
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size > 1000


def test_a_file_depends_on_neither_the_process_nor_the_settings_of_who_runs_it(
    tmp_path: Path,
) -> None:
    code = """
import sys
from pathlib import Path
import matplotlib
matplotlib.rcParams.update({"font.size": 20, "lines.linewidth": 9, "svg.fonttype": "path"})
from seesaw.api import plots
plots.lines({"a": [(1, 2), (3, 4)]}, Path(sys.argv[1]), "T", "x (s)", "y (s)")
assert matplotlib.rcParams["font.size"] == 20
assert "matplotlib.pyplot" not in sys.modules
"""
    theirs, ours = tmp_path / "theirs.svg", tmp_path / "ours.svg"
    subprocess.run([sys.executable, "-c", code, str(theirs)], check=True, timeout=60)
    plots.lines({"a": [(1, 2), (3, 4)]}, ours, "T", "x (s)", "y (s)")
    assert theirs.read_bytes() == ours.read_bytes()
    assert not re.search(r"20\d\d-\d\d-\d\d", ours.read_text())


EMPTY: dict[str, Draw] = {
    "timeline: nothing": lambda path: plots.timeline([], path, "T"),
    "lines: nothing": lambda path: plots.lines({}, path, "T", "x", "y"),
    "lines: 'a' is empty": lambda path: plots.lines({"a": []}, path, "T", "x", "y"),
    "percentiles: nothing": lambda path: plots.percentiles({}, path, "T"),
    "percentiles: 'a' is empty": lambda path: plots.percentiles({"b": [1], "a": []}, path, "T"),
    "bars: nothing": lambda path: plots.bars({}, path, "T", "y"),
    "bars: 'a' is empty": lambda path: plots.bars({"a": {}}, path, "T", "y"),
    "roofline: nothing": lambda path: plots.roofline(
        {}, path, "T", bytes_per_s=1.0, flops_per_s=1.0
    ),
}
ODD: dict[str, Draw] = {
    "lines: 'a' holds nan": lambda path: plots.lines(
        {"a": [(1.0, float("nan"))]}, path, "T", "x", "y"
    ),
    "lines: 'a' holds 0.0 on the x": lambda path: plots.lines(
        {"a": [(0.0, 1.0)]}, path, "T", "x", "y", log_x=True
    ),
    "percentiles: 'a' holds -1.0 on the x": lambda path: plots.percentiles(
        {"a": [-1.0]}, path, "T", log_x=True
    ),
    "bars: 'a' holds inf": lambda path: plots.bars({"a": {"b": float("inf")}}, path, "T", "y"),
    "roofline: 'a' has 0.0": lambda path: plots.roofline(
        {"a": [(1.0, 0.0)]}, path, "T", bytes_per_s=1.0, flops_per_s=1.0
    ),
    "timeline: 'decode 1' on rank 3, lane compute": lambda path: plots.timeline(
        [(3, "compute", "decode 1", 2.0, 1.0)], path, "T"
    ),
}


@pytest.mark.parametrize("message", [*EMPTY, *ODD])
def test_what_cannot_be_drawn_is_refused_by_name(message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        (EMPTY | ODD)[message](tmp_path / "plot.svg")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plot.pdf", "ends in .svg or .png"),
        ("plot", "ends in .svg or .png"),
        ("absent/plot.svg", "does not exist"),
        ("folder.svg", "is a folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(ConfigError, match=message):
        plots.check_plot_file(tmp_path / name)
    with pytest.raises(ConfigError, match=message):
        plots.bars(CELLS, tmp_path / name, "T", "y")


def test_without_matplotlib_a_plot_says_what_to_install() -> None:
    code = """
import sys
sys.modules["matplotlib"] = None
from seesaw.api import plots
from seesaw.errors import ConfigError
from seesaw.latency import Spread, quantile
for draw in (
    lambda: plots.check_plot_file("a.svg"),
    lambda: plots.bars({"a": {"b": 1.0}}, "a.svg", "T", "y"),
    lambda: plots.timeline([(0, "compute", "decode 1", 0.0, 1.0)], "a.svg", "T"),
):
    try:
        draw()
    except ConfigError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('pip install "matplotlib>=3.9,<4"') == 3


def test_many_spans_make_a_small_file(tmp_path: Path) -> None:
    spans = [
        (n % 8, "compute", f"decode {n}", n * 2.0, n * 2.0 + 1) for n in range(10 * MAX_VECTORS)
    ]
    plots.timeline(spans, tmp_path / "plot.svg", "T")
    assert (tmp_path / "plot.svg").stat().st_size < 500_000
    assert "decode" in texts(tmp_path / "plot.svg")


def test_spans_that_touch_are_one_bar_and_gaps_stay(tmp_path: Path) -> None:
    touching = [(0, "compute", f"decode {n}", float(n), n + 1.0) for n in range(10)]
    random.Random(0).shuffle(touching)
    plots.timeline(touching, tmp_path / "many.svg", "T")
    plots.timeline([(0, "compute", "decode 0", 0.0, 10.0)], tmp_path / "one.svg", "T")
    assert (tmp_path / "many.svg").read_bytes() == (tmp_path / "one.svg").read_bytes()
    gap = [span for span in touching if span[2] != "decode 4"]
    plots.timeline(gap, tmp_path / "gap.svg", "T")
    assert (tmp_path / "gap.svg").read_bytes() != (tmp_path / "one.svg").read_bytes()


def test_values_may_come_in_any_order(tmp_path: Path) -> None:
    points = [(float(x), float(x * x)) for x in range(20)]
    values = [value for _, value in points]
    for number, seed in enumerate((None, 1)):
        if seed is not None:
            random.Random(seed).shuffle(points)
            random.Random(seed).shuffle(values)
        plots.lines({"a": points}, tmp_path / f"lines{number}.svg", "T", "x", "y")
        plots.percentiles({"a": values}, tmp_path / f"latency{number}.svg", "T")
    for name in ("lines", "latency"):
        first, second = tmp_path / f"{name}0.svg", tmp_path / f"{name}1.svg"
        assert first.read_bytes() == second.read_bytes()


def test_quantiles_are_those_of_the_standard_library() -> None:
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    for _ in range(100):
        values = [rng.choice([1.0, 2.0, rng.random()]) for _ in range(rng.randint(2, 300))]
        spread = Spread.of(values)
        percents = statistics.quantiles(values, n=100, method="inclusive")
        expected = pytest.approx([percents[49], percents[89], percents[98]])
        assert [spread.p50, spread.p90, spread.p99] == expected, f"seed {seed}"
        found = [quantile(sorted(values), share) for share in MARKED]
        assert found == expected, f"seed {seed}"


@pytest.mark.parametrize("count", [1, 2, MAX_STEPS, MAX_STEPS + 1, 7 * MAX_STEPS])
def test_a_distribution_goes_from_0_at_its_least_to_1_at_its_most(count: int) -> None:
    ordered = [float(n) for n in range(count)]
    values, fractions = _steps(ordered)
    assert len(values) == len(fractions) <= MAX_STEPS + 1
    assert (values[0], fractions[0]) == (0.0, 0.0)
    assert (values[-1], fractions[-1]) == (count - 1.0, 1.0)
    assert all(a < b for a, b in pairwise(fractions))
    assert all(
        fraction == (value + 1) / count
        for value, fraction in zip(values[1:], fractions[1:], strict=True)
    )


def test_kinds_that_nobody_foresaw_are_drawn(tmp_path: Path) -> None:
    known = [(0, "compute", kind, n * 1.0, n + 0.5) for n, kind in enumerate(KIND_COLOURS)]
    plots.timeline([*known, (0, "compute", "something new 3", 90.0, 91.0)], tmp_path / "t.svg", "T")
    assert "something new" in texts(tmp_path / "t.svg")
