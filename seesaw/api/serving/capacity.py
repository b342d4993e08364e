"""The highest rate that a system bears within its promises, by binary search.

Knows no system: a trial is a rate, and which bound it broke if any. The rule is Sarathi-Serve's
(section 5.1): the 99th percentile of the gaps between tokens within its bound, and the median delay
until a request is begun at most 2 s, so that no queue grows; with a bound of the first token its
99th percentile too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from seesaw.latency import Slo, Spread

DELAY_S = 2.0
PRECISION = 0.05
MOST_TRIALS = 16
CAME_AT_ONCE = 0.1
"""Where all requests came within this share of a run, a higher rate would change little."""
CAME_ALONE = 0.1
"""Where fewer requests than this were there at once in the mean, a lower rate would change little,
and take ever longer to try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a rate must keep to."""

    slo: Slo
    delay_s: float = DELAY_S

    def broken(self, latency_s: Mapping[str, Spread]) -> str | None:
        """The first bound that these spreads, named as `seesaw.latency.samples` does, are beyond;
        None if there is none."""
        for told, name, share, bound_s in (
            ("TBT p99", "between_tokens", "p99", self.slo.tbt_s),
            ("TTFT p99", "first_token", "p99", self.slo.ttft_s),
            ("median delay", "delay", "p50", self.delay_s),
        ):
            value_s: float = getattr(latency_s[name], share)
            if value_s > bound_s:
                return f"{told} {value_s:.3g} s, bound {bound_s:g} s"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """`broken` as `Rule.broken` has it. `came_at_once`: its requests came in so short a time that
    a higher rate would not be another load; `came_alone`: they hardly ever met, so that a lower one
    would not."""

    rate_per_s: float
    broken: str | None
    came_at_once: bool = False
    came_alone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """`rate_per_s` is the highest rate that kept to the rule, 0 where none did; `above_per_s` the
    lowest that did not, None where none was found."""

    rate_per_s: float
    above_per_s: float | None
    trials: Sequence[Trial]

    def describe(self) -> str:
        """For people."""
        if self.rate_per_s == 0:
            last = self.trials[-1]
            alone = "; requests hardly meet there, a lower rate cannot help" * last.came_alone
            return f"no rate down to {self.above_per_s:.3g}/s keeps to it: {last.broken}{alone}"
        if self.above_per_s is None:
            return (
                f"{self.rate_per_s:.3g}/s and more: at that rate all requests come nearly at once. "
                "Take more requests to find the limit"
            )
        why = next(one.broken for one in self.trials if one.rate_per_s == self.above_per_s)
        return f"{self.rate_per_s:.3g}/s; at {self.above_per_s:.3g}/s: {why}"


def find_capacity(
    run: Callable[[float], Trial],
    start_per_s: float,
    *,
    precision: float = PRECISION,
    most_trials: int = MOST_TRIALS,
) -> Capacity:
    """Doubles or halves the rate from `start_per_s` on until one keeps to the rule and one does
    not, then bisects between the two (of their logarithms) until they are within `precision` of
    each other. Ends where no other rate would help, and after `most_trials` in any case, with what
    was found by then.
    """
    low, high = 0.0, math.inf
    rate = start_per_s
    trials: list[Trial] = []
    while len(trials) < most_trials:
        trial = run(rate)
        trials.append(trial)
        if trial.broken is None:
            low = rate
            if trial.came_at_once:
                break
        else:
            high = rate
            if low == 0.0 and trial.came_alone:
                break
        if high <= low * (1 + precision):
            break
        if low == 0.0:
            rate = high / 2
        elif math.isinf(high):
            rate = low * 2
        else:
            rate = math.sqrt(low * high)
    return Capacity(
        rate_per_s=low, above_per_s=None if math.isinf(high) else high, trials=tuple(trials)
    )
