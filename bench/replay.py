"""A clock for pytest-benchmark that shows times taken elsewhere: a device's, by its own events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


class Replay:
    def __init__(self) -> None:
        self._now_s = 0.0
        self._ahead: Iterator[float] = iter(())

    def load(self, seconds: Sequence[float]) -> None:
        self._ahead = iter(seconds)

    def advance(self) -> None:
        """What is "timed": the next of the seconds passes."""
        self._now_s += next(self._ahead)

    def __call__(self) -> float:
        return self._now_s


REPLAY = Replay()
