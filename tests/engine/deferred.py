"""A clock by which a CPU's steps seem to run on for a while, as those of a GPU do, so that the next
one is begun meanwhile."""

from __future__ import annotations

import contextlib
import os
import random
import time
from pathlib import Path

import seesaw.engine.device_clock


class DeferredMark:
    """Done when it was waited for or asked some times, and all before it."""

    def __init__(self, earlier: DeferredMark | None, asks: int) -> None:
        self.time_s = time.perf_counter()
        self.waits = 0
        self._earlier = earlier
        self._asks = asks

    def is_done(self) -> bool:
        self._asks -= 1
        return self._settle() if self._asks < 0 else False

    def wait(self) -> None:
        self.waits += 1
        self._asks = 0
        self._settle()

    def _settle(self) -> bool:
        earlier, self._earlier = self._earlier, None
        if earlier is not None:
            earlier.wait()
        return True


class DeferredClock:
    """A `DeviceClock`. A mark is done at the first to `most_asks`th time that it is asked for."""

    steps_ahead = 1

    def __init__(self, most_asks: int = 3) -> None:
        self._random = random.Random(most_asks)
        self._most_asks = most_asks
        self._last: DeferredMark | None = None

    def scope(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def follow(self) -> None:
        pass

    def mark(self) -> DeferredMark:
        self._last = DeferredMark(self._last, self._random.randrange(self._most_asks))
        return self._last

    def seconds(self, start: DeferredMark, end: DeferredMark) -> float:
        assert start.is_done(), "a mark that is not done has no time"
        assert end.is_done(), "a mark that is not done has no time"
        return end.time_s - start.time_s

    def time_s(self, mark: DeferredMark) -> float:
        assert mark.is_done(), "a mark that is not done has no time"
        return mark.time_s


def clock_of(device: object, *, profile: bool) -> DeferredClock:
    return DeferredClock()


def install(folder: str) -> None:
    """For runners that this process makes from here on; a file in `folder` tells of the first."""

    def noted(device: object, *, profile: bool) -> DeferredClock:
        (Path(folder) / f"{os.getpid()}.deferred").touch()
        return DeferredClock()

    seesaw.engine.device_clock.clock_of = noted
