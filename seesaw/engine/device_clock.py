"""When what was handed to a device is done, and how many steps it may be given ahead.

A CPU has computed a step when the call returns. A GPU is handed launches and copies in the order of
a stream; the host goes on, and asks later.
"""

from __future__ import annotations

import contextlib
import time
from typing import Protocol

import torch

KNOWN_FOR_S = 60.0
"""Seconds that float32 milliseconds tell apart by 4 microseconds."""


class Mark(Protocol):
    """A point in what a device was handed."""

    def is_done(self) -> bool:
        """Whether all before it is done; does not wait."""
        ...

    def wait(self) -> None:
        """Until all before it is done. Raises what went wrong on the device."""
        ...


class DeviceClock(Protocol):
    """`steps_ahead`: steps that may be begun before an earlier one is done."""

    steps_ahead: int

    def scope(self) -> contextlib.AbstractContextManager[object]:
        """What is handed over inside is in the order of this clock's stream."""
        ...

    def follow(self) -> None:
        """What is handed over from now on comes behind all that whoever calls has handed over."""
        ...

    def mark(self) -> Mark:
        """Behind all that was handed over so far. Inside `scope`."""
        ...

    def seconds(self, start: Mark, end: Mark) -> float:
        """Between two marks of this clock that are done."""
        ...

    def time_s(self, mark: Mark) -> float:
        """When a mark that is done was passed, by `time.perf_counter()`."""
        ...


class HostMark:
    def __init__(self) -> None:
        self.time_s = time.perf_counter()

    def is_done(self) -> bool:
        return True

    def wait(self) -> None:
        """Nothing is left to wait for."""


class HostClock:
    """Of a CPU: what was called is done."""

    steps_ahead = 0

    def scope(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def follow(self) -> None:
        """What was called is done."""

    def mark(self) -> HostMark:
        return HostMark()

    def seconds(self, start: Mark, end: Mark) -> float:
        assert isinstance(start, HostMark), "a mark of another clock"
        assert isinstance(end, HostMark), "a mark of another clock"
        return end.time_s - start.time_s

    def time_s(self, mark: Mark) -> float:
        assert isinstance(mark, HostMark), "a mark of another clock"
        return mark.time_s


class CudaMark:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self.event.record(stream)

    def is_done(self) -> bool:
        return bool(self.event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        self.event.synchronize()


class CudaClock:
    """Of a GPU: a stream of its own for what is computed, since the default stream cannot be
    recorded in a graph and waits for others. Its kernels come before those that copy KV; torch has
    few streams and gives them out again in turn, those of a priority among themselves, so that
    none that copies is this one. With `ahead` one step is begun while the one before it runs."""

    def __init__(self, device: torch.device, *, ahead: bool = True, priority: int = -1) -> None:
        self.steps_ahead = 1 if ahead else 0
        self._stream = torch.cuda.Stream(device, priority=priority)  # type: ignore[no-untyped-call]
        now = self.mark()
        now.wait()
        self._known = now, time.perf_counter()

    def scope(self) -> contextlib.AbstractContextManager[object]:
        return torch.cuda.stream(self._stream)

    def follow(self) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))

    def mark(self) -> CudaMark:
        return CudaMark(self._stream)

    def seconds(self, start: Mark, end: Mark) -> float:
        assert isinstance(start, CudaMark), "a mark of another clock"
        assert isinstance(end, CudaMark), "a mark of another clock"
        return float(start.event.elapsed_time(end.event)) / 1e3

    def time_s(self, mark: Mark) -> float:
        """From a mark whose time is known: at first one that the host waited for. A later one takes
        its place before what lies between is too long for the float32 of events."""
        assert isinstance(mark, CudaMark), "a mark of another clock"
        known, known_s = self._known
        at_s = known_s + self.seconds(known, mark)
        if at_s - known_s > KNOWN_FOR_S:
            self._known = mark, at_s
        return at_s


def clock_of(device: torch.device, *, profile: bool) -> DeviceClock:
    """With `profile`, whose parts are to add up to the time of a step, no step is begun ahead."""
    return CudaClock(device, ahead=not profile) if device.type == "cuda" else HostClock()
