"""The timeline: what every lane of every rank did when."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from seesaw.api.plots.figure import COLOURS, drawing, legend
from seesaw.errors import ConfigError
from seesaw.trace import DRIVER, LANES, kind_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KIND_COLOURS: Mapping[str, str] = {
    "prefill": "#0072B2",
    "decode": "#E69F00",
    "to prefill": "#000000",
    "to decode": "#D55E00",
    "store": "#009E73",
    "load": "#CC79A7",
    "relay": "#7F3C8D",
    "weights": "#8C564B",
    "wait for weights": "#C49C94",
    "wait": "#BBBBBB",
    "sync": "#DDDDDD",
    "driver": "#56B4E9",
}
MAX_VECTORS = 2000
"""More bars than this become pixels in an SVG too: each path takes 200 bytes of it."""

Row = tuple[int, str]
Bars = dict[str, list[tuple[float, float]]]


def timeline(
    spans: Iterable[tuple[int, str, str, float, float]],
    path: str | os.PathLike[str],
    title: str,
    *,
    simulated: bool = True,
) -> None:
    """Rows = ranks x lanes, bars coloured by kind (a span's name without its number).

    `spans`: (rank, lane, name, start_s, end_s) in any order, as `trace.Spans` keeps
    them; `name` is a kind and a number, such as `decode 17`.
    Raises ConfigError: no spans, a span that ends before it starts.
    """
    spans = list(spans)
    inches = (9.0, 1.5 + 0.2 * num_rows(spans))
    with drawing(path, title, simulated=simulated, inches=inches) as (figure, axes):
        handles, names = draw_lanes(axes, spans)
        axes.set_xlabel("time (s)")
        legend(figure, handles, names)


def num_rows(spans: Iterable[Sequence[Any]]) -> int:
    """Lanes that have spans. Raises ConfigError for none."""
    found = len({(span[0], span[1]) for span in spans})
    if not found:
        raise ConfigError("timeline: nothing to draw; expected at least one span.")
    return found


def draw_lanes(
    axes: Axes, spans: Iterable[tuple[int, str, str, float, float]]
) -> tuple[list[Any], list[str]]:
    """Bars of all rows, on an axis of seconds; returns what a legend needs."""
    rows, count = _rows(spans)
    order = sorted(rows, key=lambda row: (row[0], *_lane_key(row[1])))
    kinds = _kinds(rows)
    begin_s = min(start for bars in rows.values() for runs in bars.values() for start, _ in runs)
    end_s = max(end for bars in rows.values() for runs in bars.values() for _, end in runs)
    from matplotlib.collections import PolyCollection
    from matplotlib.patches import Patch

    for kind, colour in kinds.items():
        boxes = []
        for at, row in enumerate(order):
            # Transfers are drawn thinner than what computes.
            half = 0.42 if row[1].startswith("compute") else 0.26
            boxes += [
                ((start, at - half), (start, at + half), (end, at + half), (end, at - half))
                for start, end in rows[row].get(kind, ())
            ]
        drawn = PolyCollection(boxes, facecolors=colour, edgecolors="none")
        drawn.set_rasterized(count > MAX_VECTORS)
        drawn.set_snap(False)  # to pixels, by which short spans would vanish
        axes.add_collection(drawn, autolim=False)
    axes.set_xlim(begin_s, end_s if end_s > begin_s else begin_s + 1.0)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_yticks(range(len(order)), [_label(order, at) for at in range(len(order))])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    return [Patch(color=colour) for colour in kinds.values()], list(kinds)


def _rows(spans: Iterable[tuple[int, str, str, float, float]]) -> tuple[dict[Row, Bars], int]:
    """(start, end) by row and kind, and how many; spans that touch are one."""
    found: dict[Row, Bars] = {}
    for rank, lane, name, start_s, end_s in spans:
        if not (math.isfinite(start_s) and math.isfinite(end_s) and start_s <= end_s):
            raise ConfigError(
                f"timeline: {name!r} on rank {rank}, lane {lane}, is from {start_s} s to "
                f"{end_s} s; expected finite times, the end not before the start."
            )
        kind = kind_of(name)
        found.setdefault((rank, lane), {}).setdefault(kind, []).append((start_s, end_s))
    count = 0
    for bars in found.values():
        for kind, runs in bars.items():
            bars[kind] = _joined(sorted(runs))
            count += len(bars[kind])
    return found, count


def _joined(runs: list[tuple[float, float]]) -> list[tuple[float, float]]:
    joined = [runs[0]]
    for start_s, end_s in runs[1:]:
        last_start_s, last_end_s = joined[-1]
        if start_s <= last_end_s:
            joined[-1] = (last_start_s, max(last_end_s, end_s))
        else:
            joined.append((start_s, end_s))
    return joined


def _kinds(rows: Mapping[Row, Bars]) -> dict[str, str]:
    """Colours of the kinds there are: known ones first, each with its own."""
    present = {kind for bars in rows.values() for kind in bars}
    kinds = {kind: colour for kind, colour in KIND_COLOURS.items() if kind in present}
    taken = set(KIND_COLOURS.values())
    spare = [colour for colour in COLOURS if colour not in taken] or COLOURS
    for number, kind in enumerate(sorted(present - set(kinds))):
        kinds[kind] = spare[number % len(spare)]
    return kinds


def _lane_key(lane: str) -> tuple[int, str]:
    """LANES in their order, a second one behind the first, others after them."""
    first = lane.partition(" ")[0]
    return (LANES.index(first) if first in LANES else len(LANES), lane)


def _label(order: list[Row], at: int) -> str:
    """The lane's name, with the rank's where its rows begin."""
    rank, lane = order[at]
    if rank == DRIVER:
        return lane
    first = at == 0 or order[at - 1][0] != rank
    return f"rank {rank}  {lane}" if first else lane
