"""Seconds of a call, as the best and the median of batches of calls.

A machine's speed drifts within seconds, so what is compared is measured in turns: a batch of one
candidate, a batch of the next, and round again.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

BATCH_S = 0.01
"""Long enough for the clock, and for threads that slept to be awake most of it."""
BATCHES = 7

Call = Callable[[], object]
Clock = Callable[[Call, int], float]
"""Makes so many calls and returns the seconds that all of them took."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call, in the mean of each batch; `calls` in a batch."""

    seconds: tuple[float, ...]
    calls: int

    @property
    def best_s(self) -> float:
        return min(self.seconds)

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    def quantile_s(self, share: float) -> float:
        """What `share` of the batches stayed below; between two of them, in proportion."""
        ordered = sorted(self.seconds)
        at = share * (len(ordered) - 1)
        low = ordered[math.floor(at)]
        return low + (at - math.floor(at)) * (ordered[math.ceil(at)] - low)


def host_clock(call: Call, calls: int) -> float:
    start_s = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - start_s


def calls_per_batch(call: Call, batch_s: float = BATCH_S, clock: Clock = host_clock) -> int:
    """How many calls take about `batch_s`, one at least. The first calls, which are slower, are
    made here."""
    call()
    calls = 1
    while (taken_s := min(clock(call, calls) for _ in range(2))) < batch_s / 2:
        # At most tenfold at a time: a short sample says little about a long one.
        calls = max(calls + 1, int(calls * min(10.0, batch_s / max(taken_s, 1e-9))))
    return max(1, round(calls * batch_s / taken_s))


def alternate(
    candidates: Mapping[str, Call],
    *,
    batches: int = BATCHES,
    batch_s: float = BATCH_S,
    clock: Clock = host_clock,
) -> dict[str, Timing]:
    """A batch of each candidate in turn, `batches` times. An exception of a call passes through."""
    calls = {name: calls_per_batch(call, batch_s, clock) for name, call in candidates.items()}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(batches):
        for name, call in candidates.items():
            seconds[name].append(clock(call, calls[name]) / calls[name])
    return {name: Timing(tuple(found), calls[name]) for name, found in seconds.items()}
