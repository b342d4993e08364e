"""Bad luck for a simulation: reports that come late, ranks that are slow for a while, ranks that
die. Plain data and the draws from it; the same for the same seed."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from seesaw.errors import ConfigError


class SlowRank(NamedTuple):
    """From `begin_s` to `end_s`, what `rank` begins to compute takes `times` as long."""

    rank: int
    begin_s: float
    end_s: float
    times: float


class Death(NamedTuple):
    """`rank` dies, and with it what its replica was at."""

    rank: int
    at_s: float


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
        if not 0 <= self.late_share <= 1 or not 0 <= self.late_s < math.inf:
            raise ConfigError(
                f"late_share={self.late_share}, late_s={self.late_s}: expected a fraction from 0 "
                "to 1 and seconds from 0."
            )
        if not 0 <= self.restart_s < math.inf:
            raise ConfigError(f"restart_s={self.restart_s}: expected seconds from 0.")
        faults: list[SlowRank | Death] = [*self.slow, *self.deaths]
        for fault in faults:
            if not 0 <= fault.rank < num_ranks:
                raise ConfigError(f"{fault}: expected a rank from 0 to {num_ranks - 1}.")
        for slow in self.slow:
            if not (0 <= slow.begin_s < slow.end_s and slow.times >= 1):
                raise ConfigError(f"{slow}: expected begin_s before end_s, and times from 1.")
        for death in self.deaths:
            if not 0 <= death.at_s < math.inf:
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
