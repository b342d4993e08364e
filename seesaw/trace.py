"""What every lane of every rank and the driver did when: spans, counters and instants in a file
that chrome://tracing and ui.perfetto.dev show, and that can be read back.

The file is a JSON array of the Trace Event Format with an event a line, written as they come: the
format allows its end to be missing, so a killed job leaves a file that can be read. Knows no
scheduler and no clock.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from seesaw.errors import ConfigError
from seesaw.log import get_logger

LANES = ("compute", "store", "load", "weights", "peer", "driver", "compute 2")
"""A rank computes, in a second lane too where steps run beside each other, stores and loads KV,
fetches weights, and exchanges KV with peers; the driver plans. Their order is that of the file."""

DRIVER = -1
"""Stands for the driver where a span names a rank."""

ABOUT = "seesaw"
"""Name of the metadata event that says what was run."""

FLUSH_S = 0.5
"""What a killed process may lose."""

_FIRST_PID = 2  # of rank 0; viewers take 0 for the idle process, 1 is the driver

logger = get_logger(__name__)


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


def kind_of(name: str) -> str:
    """A span's name without its number: `decode` of `decode 17`."""
    kind, _, number = name.rpartition(" ")
    return kind if kind and number.isdecimal() else name


class TraceWriter:
    """Writes events to `path` as they come, in any order of times, which are seconds since
    `origin_s` of the same clock. A context manager; from one thread at a time.

    Raises OSError where the file cannot be made. If it cannot be written later, that is logged, and
    nothing more is traced.
    """

    def __init__(self, path: str | os.PathLike[str], *, origin_s: float = 0.0) -> None:
        self.path = Path(path)
        self._origin_s = origin_s
        self._file = self.path.open("w", encoding="utf-8")
        self._is_open = True
        self._flushed_s = time.monotonic()
        self._separator = "[\n"

    def about(self, **figures: Any) -> None:
        """What was run, for those who read the file."""
        self._put({"name": ABOUT, "ph": "M", "pid": _pid(DRIVER), "args": figures})

    def process(self, rank: int, label: str) -> None:
        """Name a rank, or the DRIVER, and its lanes."""
        pid = _pid(rank)
        name = "driver" if rank == DRIVER else f"rank {rank}"
        self._put(_named("process_name", f"{name}: {label}", pid))
        order = {"name": "process_sort_index", "ph": "M", "pid": pid}
        self._put({**order, "args": {"sort_index": pid}})
        for thread, lane in enumerate(LANES):
            if (lane == "driver") == (rank == DRIVER):
                self._put(_named("thread_name", lane, pid, thread + 1))

    def span(
        self, rank: int, lane: str, name: str, start_s: float, end_s: float, **args: Any
    ) -> None:
        """A bar in the row of a lane. `args` are shown with it."""
        event: dict[str, Any] = {
            "name": name,
            "cat": kind_of(name),
            "ph": "X",
            "pid": _pid(rank),
            "tid": LANES.index(lane) + 1,
            "ts": self._us(start_s),
            "dur": round(1e6 * (end_s - start_s), 3),
        }
        if args:
            event["args"] = args
        self._put(event)

    def counter(self, name: str, at_s: float, **values: float) -> None:
        """Values from then on, drawn one on the other."""
        event = {"name": name, "ph": "C", "pid": _pid(DRIVER), "ts": self._us(at_s)}
        self._put({**event, "args": values})

    def instant(self, name: str, at_s: float, **args: Any) -> None:
        """Something that happened to the driver, or that it heard of."""
        event = {"name": name, "cat": kind_of(name), "ph": "i", "s": "t", "pid": _pid(DRIVER)}
        thread = LANES.index("driver") + 1
        self._put({**event, "tid": thread, "ts": self._us(at_s), "args": args})

    def close(self) -> None:
        """End the array. Safe to call twice."""
        if self._is_open:
            self._write("\n]\n" if self._separator != "[\n" else "[\n]\n", flush=True)
            self._is_open = False
        with contextlib.suppress(OSError):  # told when it was written
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _us(self, at_s: float) -> float:
        return round(1e6 * (at_s - self._origin_s), 3)

    def _put(self, event: Mapping[str, Any]) -> None:
        if not self._is_open:
            return
        now_s = time.monotonic()
        flush = now_s - self._flushed_s >= FLUSH_S
        if flush:
            self._flushed_s = now_s
        self._write(self._separator + json.dumps(event), flush=flush)
        self._separator = ",\n"

    def _write(self, text: str, *, flush: bool) -> None:
        try:
            self._file.write(text)
            if flush:
                self._file.flush()
        except OSError as error:
            self._is_open = False
            logger.warning(
                "trace %s: %s. Nothing more is traced.", self.path, error.strerror or error
            )


def _pid(rank: int) -> int:
    return 1 if rank == DRIVER else _FIRST_PID + rank


def _named(what: str, name: str, pid: int, thread: int = 0) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": pid, "tid": thread, "args": {"name": name}}


def write_trace(
    path: str | Path, spans: Sequence[Span], labels: Sequence[str], **about: Any
) -> None:
    """All at once, of ranks with these labels; the file appears whole or not at all."""
    target = Path(path)
    draft = target.with_name(f"{target.name}.tmp")
    try:
        with TraceWriter(draft) as writer:
            if about:
                writer.about(**about)
            for rank, label in enumerate(labels):
                writer.process(rank, label)
            for span in spans:
                writer.span(*span)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


# -- reading ---------------------------------------------------------------------------------------


class Counted(NamedTuple):
    """Values of a counter from `at_s` on."""

    at_s: float
    name: str
    values: dict[str, float]


class Instant(NamedTuple):
    at_s: float
    name: str
    args: dict[str, Any]


@dataclass(slots=True)
class Trace:
    """What a file holds, each in the order of times. `is_whole`: its writer closed it."""

    about: dict[str, Any] = field(default_factory=dict)
    labels: dict[int, str] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    span_args: list[dict[str, Any]] = field(default_factory=list)
    """Of each span."""
    counters: list[Counted] = field(default_factory=list)
    instants: list[Instant] = field(default_factory=list)
    is_whole: bool = True


def read_trace(path: str | Path) -> Trace:
    """What a TraceWriter wrote, also where it was cut off: a torn last line is left out. Raises
    ConfigError where the file is no such trace."""
    found = Trace(is_whole=False)
    try:
        with Path(path).open(encoding="utf-8") as file:
            if file.readline().strip() != "[":
                raise ValueError("line 1 is not '['")
            for number, line in enumerate(file, 2):
                text = line.strip()
                if text == "]":
                    found.is_whole = True
                    break
                try:
                    _take(found, json.loads(text.removesuffix(",")))
                except (ValueError, KeyError, TypeError, IndexError) as error:
                    if line.endswith("\n"):
                        raise ValueError(f"line {number}: {error!r}") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Expected a file of --trace.") from error
    except ValueError as error:
        raise ConfigError(
            f"{path}: is no trace of seesaw ({error}). Expected a file that --trace wrote."
        ) from error
    order = sorted(range(len(found.spans)), key=lambda at: found.spans[at][3:])
    found.spans = [found.spans[at] for at in order]
    found.span_args = [found.span_args[at] for at in order]
    found.counters.sort(key=lambda one: one.at_s)
    found.instants.sort(key=lambda one: one.at_s)
    return found


def _take(into: Trace, event: Mapping[str, Any]) -> None:
    kind, name, rank = event["ph"], event["name"], event["pid"] - _FIRST_PID
    if kind == "M":
        if name == ABOUT:
            into.about = event["args"]
        elif name == "process_name":
            into.labels[rank] = event["args"]["name"]
        return
    at_s = event["ts"] / 1e6
    if not math.isfinite(at_s):
        raise ValueError(f"a time of {at_s}")
    if kind == "X":
        lane = LANES[event["tid"] - 1]
        into.spans.append(Span(rank, lane, name, at_s, at_s + event["dur"] / 1e6))
        into.span_args.append(event.get("args", {}))
    elif kind == "C":
        into.counters.append(Counted(at_s, name, event["args"]))
    elif kind == "i":
        into.instants.append(Instant(at_s, name, event["args"]))
    else:
        raise ValueError(f"an event of kind {kind!r}")
