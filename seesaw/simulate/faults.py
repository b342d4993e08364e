"""Bad luck for a simulation: reports that come late, ranks that are slow for a while, ranks that
die. Plain data and the draws from it; the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from seesaw.errors import ConfigError

MOST_S = 1e12
"""Longest time that anything here takes: far beyond all that is of use, and far from where sums
overflow."""
MOST_TIMES = 1e6


def is_time(seconds: float) -> bool:
    """0 or more, and finite."""
    return 0 <= seconds <= MOST_S


class SlowRank(NamedTuple):
    """From `begin_s` to `end_s`, what `rank` begins to compute takes `times` as long."""

    rank: int
    begin_s: float
    end_s: float
    times: float

    def __str__(self) -> str:
        return f"slow {self.rank}:{self.begin_s:g}:{self.end_s:g}:{self.times:g}"


class Death(NamedTuple):
    """`rank` dies, and with it what its replica was at."""

    rank: int
    at_s: float

    def __str__(self) -> str:
        return f"death {self.rank}:{self.at_s:g}"


@dataclass(frozen=True, kw_only=True)
class Faults:
    """A report of a finished step, store or load is late with probability `late_share`, by
    `late_s` in the mean (exponential), and so may come after later ones. A replica that lost a rank
    begins anew `restart_s` later, with the requests it had not finished."""

    late_share: float = 0.0
    late_s: float = 0.0
    slow: Sequence[SlowRank] = ()
    deaths: Sequence[Death] = ()
    restart_s: float = 60.0

    def check(self, num_ranks: int) -> None:
        """Raises ConfigError where it cannot be for so many ranks."""
        if not 0 <= self.late_share <= 1 or not is_time(self.late_s):
            raise ConfigError(
                f"late {self.late_share:g}:{self.late_s:g}: expected a share from 0 to 1, and "
                "seconds from 0."
            )
        if not is_time(self.restart_s):
            raise ConfigError(f"restart_s={self.restart_s:g}: expected seconds from 0.")
        faults: list[SlowRank | Death] = [*self.slow, *self.deaths]
        for fault in faults:
            if not 0 <= fault.rank < num_ranks:
                raise ConfigError(f"{fault}: expected a rank from 0 to {num_ranks - 1}.")
        for slow in self.slow:
            if not (is_time(slow.begin_s) and slow.begin_s < slow.end_s <= MOST_S):
                raise ConfigError(f"{slow}: expected seconds, the begin before the end.")
            if not 1 <= slow.times <= MOST_TIMES:
                raise ConfigError(f"{slow}: expected a factor from 1 to {MOST_TIMES:g}.")
        for death in self.deaths:
            if not is_time(death.at_s):
                raise ConfigError(f"{death}: expected seconds from 0.")

    def late_by(self, rng: random.Random) -> float:
        """Seconds by which the next report is late."""
        if self.late_share == 0 or rng.random() >= self.late_share:
            return 0.0
        return rng.expovariate(1.0) * self.late_s

    def pace(self, rank: int, at_s: float) -> float:
        """How many times longer than it should `rank` takes for what it begins at `at_s`."""
        times = 1.0
        for slow in self.slow:
            if slow.rank == rank and slow.begin_s <= at_s < slow.end_s:
                times *= slow.times
        return times


NO_FAULTS = Faults()
