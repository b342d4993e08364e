"""A roofline: what memory and arithmetic admit at each ratio of the two, and what was reached."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

from seesaw.api.plots.figure import COLOURS, MARKERS, drawing, legend, refuse_empty
from seesaw.errors import ConfigError

MARGIN = 2.0
"""Between the outermost points and the edge, as a factor."""
MOST_POINTS = 400
"""Of a series: more cannot be told apart, and each takes room in an SVG."""


def roofline(
    series: Mapping[str, Sequence[tuple[float, float]]],
    path: str | os.PathLike[str],
    title: str,
    *,
    bytes_per_s: float,
    flops_per_s: float,
    simulated: bool = False,
) -> None:
    """Points (flops per byte, flops per second) of each series under the limits, both axes
    logarithmic. Raises ConfigError: nothing to draw, or what has no logarithm.
    """
    refuse_empty("roofline", series)
    for name, points in series.items():
        for value in (number for point in points for number in point):
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"roofline: {name!r} has {value}; expected numbers above 0.")
    ridge = flops_per_s / bytes_per_s
    xs = [x for points in series.values() for x, _ in points]
    low, high = min([ridge, *xs]) / MARGIN, max([ridge, *xs]) * MARGIN
    with drawing(path, title, simulated=simulated) as (figure, axes):
        handles = axes.plot(
            [low, ridge, high],
            [low * bytes_per_s / 1e9, flops_per_s / 1e9, flops_per_s / 1e9],
            color="black",
            linewidth=1.4,
        )
        for number, points in enumerate(series.values()):
            every = -(-len(points) // MOST_POINTS)
            handles += axes.plot(
                [x for x, _ in points[::every]],
                [y / 1e9 for _, y in points[::every]],
                linestyle="",
                marker=MARKERS[number % len(MARKERS)],
                color=COLOURS[number % len(COLOURS)],
                markeredgecolor="white",
                markeredgewidth=0.4,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(low, high)
        axes.set_xlabel("flops per byte that must be read or written")
        axes.set_ylabel("GFLOP/s")
        axes.margins(y=0.15)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:,g}")
        limits = f"limits: {bytes_per_s / 1e9:.1f} GB/s, {flops_per_s / 1e9:,.0f} GFLOP/s"
        legend(figure, handles, [limits, *series])
