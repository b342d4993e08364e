"""A run in one picture: the timeline of ranks and driver, and below it, on the same axis, how full
pools and tier were, and how fast tokens came."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from seesaw.api.plots.figure import COLOURS, drawing_panels, legend
from seesaw.api.plots.lanes import draw_lanes, num_rows
from seesaw.trace import DRIVER, Span, Trace, kind_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHADES = {"prefill": "#D6E6F2", "decode": "#FBEBD0"}
POOLS = (
    ("tier", "tier_blocks", "tier"),
    ("decode pool", "decode_blocks", "decode pool"),
    ("prefill pool", "prefill_blocks", "prefill pool"),
)
"""Counter, size in what the trace says of the run, name."""


def run_picture(
    trace: Trace, spans: Iterable[Span], path: str | os.PathLike[str], title: str
) -> None:
    """`spans` are those to show. Panels that the trace has no counters for are left out. Raises
    ConfigError: no spans, not a file that a plot can be written to."""
    spans = [_shown(span) for span in spans]
    origin_s = min((span.start_s for span in spans), default=0.0)
    shares, rates = _shares(trace, origin_s), _rates(trace, origin_s)
    below = [panel for panel in (shares, rates) if panel]
    rows = num_rows(spans)
    heights = [0.2 * rows + 0.3, *(1.1 for _ in below)]
    inches = (9.0, sum(heights) + 1.5)
    simulated = bool(trace.about.get("simulated"))
    with drawing_panels(path, title, heights, simulated=simulated, inches=inches) as (figure, axes):
        moved = [
            span._replace(start_s=span.start_s - origin_s, end_s=span.end_s - origin_s)
            for span in spans
        ]
        handles, names = draw_lanes(axes[0], moved)
        panels = iter(axes[1:])
        for series, label in ((shares, "held"), (rates, "tokens/s")):
            if not series:
                continue
            panel = next(panels)
            for number, (name, points) in enumerate(series.items()):
                own = COLOURS[(3 + number) % len(COLOURS)] if label == "held" else COLOURS[number]
                xs, ys = zip(*points, strict=True)
                # A rate is of the time before it.
                where: Any = "post" if label == "held" else "pre"
                panel.step(xs, ys, where=where, color=own, linewidth=1.1, label=name)
            panel.set_ylim(bottom=0)
            panel.set_ylabel(label)
            panel.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
            if label == "held":
                panel.set_ylim(0, 1.05)
                panel.yaxis.set_major_formatter("{x:.0%}")
            _shade(panel, moved)
        axes[-1].set_xlabel("time (s)")
        legend(figure, handles, names)


def _shown(span: Span) -> Span:
    """What the driver does is one kind, and so are layers of weights."""
    if span.rank == DRIVER or span.lane == "weights":
        return span._replace(name=span.lane)
    return span


def _shares(trace: Trace, origin_s: float) -> dict[str, list[tuple[float, float]]]:
    """Blocks held of all, over replicas."""
    found: dict[str, list[tuple[float, float]]] = {}
    replicas = trace.about.get("num_replicas", 1)
    for counter, size, name in POOLS:
        blocks = trace.about.get(size)
        held: dict[str, float] = {}
        points = []
        for one in trace.counters:
            if blocks and one.name.partition(" of replica ")[0] == counter:
                held[one.name] = one.values["held"]
                share = sum(held.values()) / (replicas * blocks)
                points.append((one.at_s - origin_s, share))
        if points:
            found[name] = points
    return found


def _rates(trace: Trace, origin_s: float) -> dict[str, list[tuple[float, float]]]:
    found: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for one in trace.counters:
        if one.name == "tokens/s":
            for name, rate in one.values.items():
                found[{"prompt": "prompts", "output": "answers"}[name]].append(
                    (one.at_s - origin_s, rate)
                )
    return dict(found)


def _shade(axes: Axes, spans: Sequence[Span]) -> None:
    """The phases of the first rank, behind."""
    runs: list[list[Any]] = []
    for span in spans:
        kind = kind_of(span.name)
        if span.rank != 0 or kind not in SHADES:
            continue
        if runs and runs[-1][0] == kind:
            runs[-1][2] = span.end_s
        else:
            runs.append([kind, span.start_s, span.end_s])
    for kind, start_s, end_s in runs:
        axes.axvspan(start_s, end_s, color=SHADES[kind], linewidth=0, zorder=0)
