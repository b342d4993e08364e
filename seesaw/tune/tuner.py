"""Tries what is worth trying within a budget and keeps what is faster than the default by more than
the noise. Knows no device: `Trials` does the work, `Journal` remembers it.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from seesaw.kernels.config_files import TunedConfig, write
from seesaw.kernels.kernel import Config
from seesaw.tune.journal import Journal
from seesaw.tune.trials import Trials
from seesaw.tune.units import Card, Outcome, Unit

ASSUMED_S = 4.0
"""Seconds of a try, for the first estimate on a card on which nothing was tried yet."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one unit: `best` where a configuration is kept, `path` its file; `left`
    candidates for which there was no time; `bad` of those tried that do not work, by status."""

    unit: Unit
    best: Config | None
    outcome: Outcome | None
    path: Path | None
    tried: int
    left: int
    bad: dict[str, int]

    @property
    def verdict(self) -> Literal["tuned", "the default is best", "not done"]:
        if self.best is not None:
            return "tuned"
        return "not done" if self.left else "the default is best"


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of what is still to be tried; `measured` where tries on this card are known already."""

    units: int
    candidates: int
    done: int
    seconds: float
    measured: bool


def estimate(units: Sequence[Unit], journal: Journal) -> Estimate:
    pairs = [(unit, config) for unit in units for config in unit.candidates]
    done = sum(journal.outcome(unit, config) is not None for unit, config in pairs)
    per_try = journal.seconds_per_try()
    seconds = (len(pairs) - done) * (ASSUMED_S if per_try is None else per_try)
    return Estimate(len(units), len(pairs), done, seconds, per_try is not None)


def tune(
    units: Sequence[Unit],
    card: Card,
    trials: Trials,
    journal: Journal,
    folder: Path,
    budget_s: float,
    *,
    on_try: Callable[[Unit, Config, Outcome], None] = lambda unit, config, outcome: None,
    clock: Callable[[], float] = time.monotonic,
) -> list[Result]:
    """Results by unit. Each has an equal part of the time that is left when its turn comes, and its
    file is written at the end of its turn."""
    deadline_s = clock() + budget_s
    results = []
    for index, unit in enumerate(units):
        share_s = max(0.0, deadline_s - clock()) / (len(units) - index)
        until_s = clock() + share_s
        outcomes: dict[int, Outcome] = {}
        for place, config in enumerate(unit.candidates):
            known = journal.outcome(unit, config)
            if known is None and clock() < until_s:
                known = _attempt(unit, config, trials, journal, clock)
                on_try(unit, config, known)
            if known is not None:
                outcomes[place] = known
        results.append(_conclude(unit, card, outcomes, folder))
    return results


def _attempt(
    unit: Unit, config: Config, trials: Trials, journal: Journal, clock: Callable[[], float]
) -> Outcome:
    journal.begin(unit, config)
    began_s = clock()
    try:
        outcome = trials.attempt(unit, config)
    except BaseException:
        journal.interrupted(unit, config)
        raise
    journal.end(unit, config, outcome, clock() - began_s)
    return outcome


def _conclude(unit: Unit, card: Card, outcomes: dict[int, Outcome], folder: Path) -> Result:
    bad: dict[str, int] = {}
    for outcome in outcomes.values():
        if outcome.status != "ok":
            bad[outcome.status] = bad.get(outcome.status, 0) + 1
    # Compared by their ratio to the default, which was taken in the same minutes.
    worth = {place: one for place, one in outcomes.items() if one.gain_us > 0}
    left = len(unit.candidates) - len(outcomes)
    if not worth:
        return Result(unit, None, None, None, len(outcomes), left, bad)
    place = min(worth, key=lambda place: worth[place].median_us / worth[place].default_us)
    best, outcome = unit.candidates[place], worth[place]
    path = write(
        folder,
        TunedConfig(
            kernel=unit.kernel, key=dict(unit.key), device_name=card.device_name,
            capability=card.capability, config=best, triton=card.triton,
            clocks_mhz=dict(card.clocks_mhz), median_us=outcome.median_us,
            default_us=outcome.default_us, date=datetime.date.today().isoformat(),
        ),
    )  # fmt: skip
    return Result(unit, best, outcome, path, len(outcomes), left, bad)
