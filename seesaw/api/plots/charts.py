"""Lines, distributions and bars of named series."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence

from seesaw.api.plots.figure import (
    COLOURS,
    DASHES,
    MARKERS,
    drawing,
    legend,
    log_scale,
    refuse_empty,
)
from seesaw.errors import ConfigError
from seesaw.latency import quantile

MARKED = (0.5, 0.9, 0.99)
"""Quantiles of a distribution that are marked."""
MAX_STEPS = 2000
"""Of one distribution's line: more cannot be seen, and each takes room in an SVG."""
HATCHES = ("", "//", "..", "xx", "\\\\", "++")


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    path: str | os.PathLike[str],
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    *,
    simulated: bool = True,
) -> None:
    """One line with markers per series of (x, y), drawn from left to right; y from 0 on.

    Labels are to give the units. Raises ConfigError: nothing to draw, not finite, x <= 0 with
    `log_x`.
    """
    refuse_empty("lines", series)
    for name, points in series.items():
        _refuse_odd("lines", name, (value for point in points for value in point))
        if log_x:
            _refuse_not_positive("lines", name, (x for x, _ in points))
    with drawing(path, title, simulated=simulated) as (figure, axes):
        handles = []
        for number, points in enumerate(series.values()):
            xs, ys = zip(*sorted(points), strict=True)
            handles += axes.plot(
                xs,
                ys,
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                linestyle=DASHES[number % len(DASHES)],
            )
        if log_x:
            log_scale(axes)
        if all(y >= 0 for points in series.values() for _, y in points):
            axes.set_ylim(bottom=0)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        legend(figure, handles, list(series))


def percentiles(
    series: Mapping[str, Sequence[float]],
    path: str | os.PathLike[str],
    title: str,
    x_label: str = "latency (s)",
    log_x: bool = False,
    *,
    simulated: bool = True,
) -> None:
    """For each latency the fraction of requests that took no longer; p50, p90 and p99 are marked
    and stand in the legend. Raises ConfigError as `lines` does.
    """
    refuse_empty("percentiles", series)
    for name, values in series.items():
        _refuse_odd("percentiles", name, values)
        if log_x:
            _refuse_not_positive("percentiles", name, values)
    with drawing(path, title, simulated=simulated) as (figure, axes):
        handles, names = [], []
        for number, (name, values) in enumerate(series.items()):
            ordered = sorted(values)
            colour = COLOURS[number % len(COLOURS)]
            xs, fractions = _steps(ordered)
            handles += axes.step(
                xs, fractions, where="post", color=colour, linestyle=DASHES[number % len(DASHES)]
            )
            marked = [quantile(ordered, share) for share in MARKED]
            axes.plot(
                marked, MARKED, color=colour, linestyle="", marker=MARKERS[number % len(MARKERS)]
            )
            figures = ", ".join(
                f"p{share * 100:.0f} {value:.3g}"
                for share, value in zip(MARKED, marked, strict=True)
            )
            names.append(f"{name}: {figures}")
        axes.set_yticks([0, 0.25, 0.75, *MARKED])
        axes.set_ylim(0, 1.02)
        if log_x:
            log_scale(axes)
        elif all(min(values) >= 0 for values in series.values()):
            axes.set_xlim(left=0)
        axes.set_xlabel(x_label)
        axes.set_ylabel("fraction of requests")
        legend(figure, handles, names)


def bars(
    groups: Mapping[str, Mapping[str, float]],
    path: str | os.PathLike[str],
    title: str,
    y_label: str,
    baseline: float | None = None,
    *,
    simulated: bool = True,
) -> None:
    """`groups[group][series]` side by side, the value above each bar; a series that a group lacks
    leaves a gap. `baseline` is a line across, at 1 for gains, say. Raises ConfigError.
    """
    refuse_empty("bars", groups)
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    for group, values in groups.items():
        _refuse_odd("bars", group, values.values())
    width = 0.8 / len(names)
    inches = (max(6.5, 0.32 * len(groups) * (len(names) + 1)), 4.0)
    with drawing(path, title, simulated=simulated, inches=inches) as (figure, axes):
        handles = []
        for number, name in enumerate(names):
            drawn = [(at, group[name]) for at, group in enumerate(groups.values()) if name in group]
            container = axes.bar(
                [at + (number - (len(names) - 1) / 2) * width for at, _ in drawn],
                [value for _, value in drawn],
                width * 0.92,
                color=COLOURS[number % len(COLOURS)],
                hatch=HATCHES[number % len(HATCHES)],
                edgecolor="white",
                linewidth=0,
            )
            axes.bar_label(container, fmt="{:.3g}", fontsize=6.5, padding=1)
            handles.append(container)
        if baseline is not None:
            axes.axhline(baseline, color="black", linewidth=0.8)
        crowded = len(groups) * max(map(len, groups)) > 75
        axes.set_xticks(range(len(groups)), list(groups))
        if crowded:
            for tick in axes.get_xticklabels():
                tick.set(rotation=40, ha="right", rotation_mode="anchor")
        axes.grid(visible=False, axis="x")
        axes.margins(y=0.08)
        axes.set_ylabel(y_label)
        legend(figure, handles, names)


def _steps(ordered: Sequence[float]) -> tuple[list[float], list[float]]:
    """Points (value, fraction not above it) of a distribution, from fraction 0 on."""
    count = len(ordered)
    ranks = list(range(count))
    if count > MAX_STEPS:
        ranks = sorted({round(i * (count - 1) / (MAX_STEPS - 1)) for i in range(MAX_STEPS)})
    return (
        [ordered[0], *(ordered[rank] for rank in ranks)],
        [0.0, *((rank + 1) / count for rank in ranks)],
    )


def _refuse_odd(what: str, name: str, values: Iterable[float]) -> None:
    for value in values:
        if not math.isfinite(value):
            raise ConfigError(f"{what}: {name!r} holds {value}, expected finite numbers.")


def _refuse_not_positive(what: str, name: str, values: Iterable[float]) -> None:
    for value in values:
        if value <= 0:
            raise ConfigError(
                f"{what}: {name!r} holds {value} on the x axis; with log_x expected more than 0."
            )
