"""What every lane of every rank did, kept and written as a Chrome trace (chrome://tracing, or
ui.perfetto.dev). Knows no scheduler and no clock."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

LANES = ("compute", "store", "load")


class Span(NamedTuple):
    """`name` says what and which, such as `prefill 3`, `store 7` or `to decode`."""

    rank: int
    lane: str
    name: str
    start_s: float
    end_s: float


class Spans:
    """A recorder that keeps all it is told, in that order."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def span(self, rank: int, lane: str, name: str, start_s: float, end_s: float) -> None:
        self.spans.append(Span(rank, lane, name, start_s, end_s))


def trace_events(spans: Sequence[Span], labels: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Of the Trace Event Format: a process for each rank with its label, a thread for each of its
    lanes, times in microseconds."""
    for rank, label in enumerate(labels):
        yield _named("process_name", f"rank {rank}: {label}", rank)
        yield {"name": "process_sort_index", "ph": "M", "pid": rank, "args": {"sort_index": rank}}
        for thread, lane in enumerate(LANES):
            yield _named("thread_name", lane, rank, thread)
    for span in spans:
        kind = span.name.rpartition(" ")[0]
        yield {
            "name": span.name,
            "cat": kind,
            "ph": "X",
            "pid": span.rank,
            "tid": LANES.index(span.lane),
            "ts": 1e6 * span.start_s,
            "dur": 1e6 * (span.end_s - span.start_s),
        }


def _named(what: str, name: str, rank: int, thread: int = 0) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": rank, "tid": thread, "args": {"name": name}}


def write_trace(path: str | Path, spans: Sequence[Span], labels: Sequence[str]) -> None:
    """One event a line; the file appears whole or not at all."""
    target = Path(path)
    draft = target.with_name(f"{target.name}.tmp")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
            file.writelines(_joined(trace_events(spans, labels)))
            file.write("\n]}\n")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def _joined(events: Iterable[dict[str, Any]]) -> Iterator[str]:
    for index, event in enumerate(events):
        yield (",\n" if index else "") + json.dumps(event)
