"""When requests come: all at once (an offline job), or one after the other with gaps drawn from a
Gamma distribution. Standard library only; the same for the same seed."""

from __future__ import annotations

import math
import random

from seesaw.errors import ConfigError
from seesaw.plan.workload import Arrivals, Workload
from seesaw.simulate.scenario import Arrival

MOST_CV = 1000
"""Beyond it nearly all requests come at once, and the numbers drawn lose their precision."""
LEAST_CV = 1e-6
"""Below it gaps are as good as constant, and numbers far below it are never done being drawn."""


def draw_arrivals(arrivals: Arrivals | None, count: int, seed: int) -> list[float]:
    """Seconds, rising, the first at 0. None = all at 0.

    Gaps have mean 1 / rate_per_s and coefficient of variation `cv`: 0 = constant, 1 = exponential
    (Poisson arrivals), above = bursts. Raises ConfigError.
    """
    if arrivals is None:
        return [0.0] * count
    rate, cv = arrivals.rate_per_s, arrivals.cv
    if not 0 < rate < math.inf:
        raise ConfigError(f"rate={rate}: expected requests per second, above 0.")
    if not 0 <= cv <= MOST_CV:
        raise ConfigError(
            f"cv={cv}: expected 0 (constant gaps) to {MOST_CV}; 1 = Poisson arrivals."
        )
    if cv < LEAST_CV:
        return [index / rate for index in range(count)]
    rng = random.Random(f"{seed}/arrivals")
    at_s, times = 0.0, []
    for _ in range(count):
        times.append(at_s)
        at_s += rng.gammavariate(1 / cv**2, cv**2 / rate)
    return times


def draw_requests(
    workload: Workload, count: int, *, arrivals: Arrivals | None = None, seed: int = 0
) -> list[Arrival]:
    """`count` requests of the workload, in the order of their arrival."""
    times = draw_arrivals(arrivals, count, seed)
    return [
        Arrival(at_s, lengths.prompt, lengths.answer)
        for at_s, lengths in zip(times, workload.draw(count, seed), strict=True)
    ]
