"""A clock that only moves when somebody waits: events in order of time, those of one moment in the
order in which they were made. What happened last is kept, to be told when something is wrong."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable

MOST_NOTES = 60


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.notes: deque[str] = deque(maxlen=MOST_NOTES)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()

    def at(self, time_s: float, act: Callable[[], None]) -> None:
        """Have `act` called at that time, or as soon as may be where it is over."""
        heapq.heappush(self._events, (max(time_s, self.now_s), next(self._serial), act))

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self.at(self.now_s + seconds, act)

    @property
    def next_s(self) -> float | None:
        """When something happens next; None = never."""
        return self._events[0][0] if self._events else None

    def advance(self) -> bool:
        """Have the next thing happen; False where there is none."""
        if not self._events:
            return False
        self.now_s, _, act = heapq.heappop(self._events)
        act()
        return True

    def note(self, text: str) -> None:
        self.notes.append(f"{self.now_s:10.3f} s  {text}")
