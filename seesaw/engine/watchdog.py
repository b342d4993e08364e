"""How long each rank has owed something: an answer to the driver's ping, or a finished step.

Owns the counting, and nothing of processes or messages. The driver counts only while it looks, and
never more than `MOST_PER_LOOK_S` from one look to the next: a driver that was stopped itself, a
laptop that slept or a host that stalled for a minute must not blame the ranks, whose answers it has
had no time to read.
"""

from __future__ import annotations

from collections.abc import Callable

LOOK_S = 0.5
"""How often the driver looks while it waits for ranks."""

MOST_PER_LOOK_S = 2 * LOOK_S


class Watchdog:
    """`clock`: seconds that never go back. Rank numbers are the caller's."""

    def __init__(self, num_ranks: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._owed_s: list[float | None] = [None] * num_ranks  # None: it owes nothing
        self._looked_s = clock()

    def owe(self, rank: int) -> None:
        """From now on, unless it owes already."""
        if self._owed_s[rank] is None:
            self._owed_s[rank] = 0.0

    def heard(self, rank: int, *, still_owes: bool = False) -> None:
        """It did what it owed; with `still_owes` there is more, which counts from 0."""
        self._owed_s[rank] = 0.0 if still_owes else None

    def owes(self, rank: int) -> bool:
        return self._owed_s[rank] is not None

    def look(self) -> list[float]:
        """Seconds for which each rank has owed something by now, 0 where it owes nothing. To be
        called every LOOK_S or so, when all that ranks have sent is read."""
        now_s = self._clock()
        elapsed_s = min(max(0.0, now_s - self._looked_s), MOST_PER_LOOK_S)
        self._looked_s = now_s
        for rank, owed_s in enumerate(self._owed_s):
            if owed_s is not None:
                self._owed_s[rank] = owed_s + elapsed_s
        return [owed_s or 0.0 for owed_s in self._owed_s]
