"""A figure from its first axis to its file, the same for every plot.

Owns the style and the bytes: no date, no random id, no setting of the person who runs it gets into
a file, so the same plot is the same file. Colours are told apart by the colour-blind and, with
markers and dashes, in black and white.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seesaw.api.report import check_writable
from seesaw.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008), without the yellow, which is lost on paper; dark and light ones in turn.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":")

# Of each kind of file: what would differ from run to run is left out.
METADATA: Mapping[str, Mapping[str, Any]] = {
    ".svg": {"Date": None, "Creator": "seesaw"},
    ".png": {"Software": None},
}
STYLE: Mapping[str, Any] = {
    "svg.hashsalt": "seesaw",
    "svg.fonttype": "none",  # text stays text: it can be searched, and files are small
    "text.parse_math": False,  # "$ per 1M tokens" is no formula
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "lines.markersize": 4.5,
    "savefig.dpi": 160,
}


def check_plot_file(path: str | os.PathLike[str]) -> Path:
    """`path` as a file that a plot can be written to; ConfigError where it cannot.

    For callers to ask before work is spent.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"{path}: plots need matplotlib, which cannot be imported ({error}). Install it: "
            'pip install "matplotlib>=3.9,<4" (or seesaw-llm[plot]).'
        ) from error
    file = Path(path)
    if file.suffix.lower() not in METADATA:
        raise ConfigError(f"{path}: a plot's file ends in {' or '.join(METADATA)}.")
    check_writable(file, "plot")
    return file


@contextlib.contextmanager
def drawing(
    path: str | os.PathLike[str],
    title: str,
    *,
    simulated: bool,
    inches: tuple[float, float] = (6.5, 4.0),
) -> Iterator[tuple[Figure, Axes]]:
    """Yields a figure with one pair of axes, and writes it to `path` afterwards, whole or not at
    all. The title says that it is `simulated`.
    """
    with drawing_panels(path, title, (1.0,), simulated=simulated, inches=inches) as (figure, axes):
        yield figure, axes[0]


@contextlib.contextmanager
def drawing_panels(
    path: str | os.PathLike[str],
    title: str,
    heights: Sequence[float],
    *,
    simulated: bool,
    inches: tuple[float, float],
) -> Iterator[tuple[Figure, Sequence[Axes]]]:
    """The same with axes one below the other, their heights in the ratio of `heights`, over one
    x."""
    file = check_plot_file(path)
    from matplotlib import style
    from matplotlib.figure import Figure

    if simulated and "simulated" not in title.lower():
        title = f"{title} (simulated)"
    with style.context(["default", dict(STYLE)]):
        figure = Figure(figsize=inches, layout="constrained")
        grid = figure.add_gridspec(len(heights), 1, height_ratios=list(heights))
        axes = [figure.add_subplot(grid[0])]
        axes += [figure.add_subplot(grid[at], sharex=axes[0]) for at in range(1, len(heights))]
        for one in axes[:-1]:
            one.tick_params(axis="x", labelbottom=False)
        axes[0].set_title(title, wrap=True)
        yield figure, axes
        # Not by pyplot: no window and no choice of backend; what draws follows from the format.
        draft = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        suffix = file.suffix.lower()
        try:
            figure.savefig(draft, format=suffix[1:], metadata=dict(METADATA[suffix]))
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)


def legend(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """Below the plot, where it covers nothing."""
    # Before 3.10 matplotlib leaves out names that begin with an underscore.
    names = [f" {name}" if name.startswith("_") else name for name in names]
    columns = max(1, min(len(names), 90 // (max(map(len, names)) + 6)))
    figure.legend(handles, names, loc="outside lower center", ncols=columns)


def log_scale(axes: Axes) -> None:
    """For x; ticks are plain numbers, finer where there are few decades."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    fine = high / low < 2000
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if fine else (1.0,), numticks=20))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def refuse_empty(what: str, series: Mapping[str, Any]) -> None:
    """ConfigError where there is nothing to draw, on the whole or in one series."""
    if not series:
        raise ConfigError(f"{what}: nothing to draw; expected at least one series.")
    for name, values in series.items():
        if not values:
            raise ConfigError(f"{what}: {name!r} is empty; leave it out or give it values.")
