"""How long answers took: from the moments of requests to figures that can be compared.

Open to all and made of plain numbers, so that runs that were measured and runs that were simulated
are judged by the same code. Seconds are of one clock, whichever; standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Of a figure over all requests that have it."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        if not values:
            return cls(mean=0.0, p50=0.0, p90=0.0, p99=0.0, max=0.0)
        ordered = sorted(values)
        p50, p90, p99 = (quantile(ordered, share) for share in (0.5, 0.9, 0.99))
        mean = sum(ordered) / len(ordered)
        return cls(mean=mean, p50=p50, p90=p90, p99=p99, max=ordered[-1])


def quantile(ordered: Sequence[float], share: float) -> float:
    """Of values that rise: on the line between the two nearest."""
    low, rest = divmod(share * (len(ordered) - 1), 1.0)
    index = int(low)
    value = ordered[index]
    if rest == 0.0 or value == ordered[index + 1]:
        return value
    return min(value + (ordered[index + 1] - value) * rest, ordered[index + 1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Moments of a request that was answered: when it came, when its first step was handed over,
    when its first and its last token were known. `gaps_s` are those between its tokens, None where
    they were not noted."""

    arrival_s: float
    scheduled_s: float
    first_s: float
    end_s: float
    num_tokens: int
    gaps_s: Sequence[float] | None = None

    @classmethod
    def of(cls, arrival_s: float, scheduled_s: float, token_s: Sequence[float]) -> Self:
        """`token_s`: when each token was known, at least one."""
        return cls(
            arrival_s=arrival_s,
            scheduled_s=scheduled_s,
            first_s=token_s[0],
            end_s=token_s[-1],
            num_tokens=len(token_s),
            gaps_s=[after - before for before, after in pairwise(token_s)],
        )

    @property
    def delay_s(self) -> float:
        """Until anything was computed for it."""
        return self.scheduled_s - self.arrival_s

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.arrival_s

    @property
    def longest_gap_s(self) -> float:
        """0 for an answer of one token. Gaps must have been noted."""
        assert self.gaps_s is not None, "gaps between tokens were not noted"
        return max(self.gaps_s, default=0.0)


def samples(timings: Sequence[Timing]) -> dict[str, list[float]]:
    """The latencies of all requests by name, seconds.

    "delay", "first_token" (TTFT) and "end_to_end" count from the arrival. "between_tokens" (TBT)
    has all gaps of all answers, and is left out where they were not noted; "per_token" is the mean
    gap of each answer, of those of two tokens or more; "normalized" is the end over the tokens, as
    in Orca and vLLM.
    """
    found = {
        "delay": [one.delay_s for one in timings],
        "first_token": [one.ttft_s for one in timings],
        "between_tokens": list(gaps_s(timings)),
        "per_token": [
            (one.end_s - one.first_s) / (one.num_tokens - 1)
            for one in timings
            if one.num_tokens > 1
        ],
        "normalized": [(one.end_s - one.arrival_s) / one.num_tokens for one in timings],
        "end_to_end": [one.end_s - one.arrival_s for one in timings],
    }
    if any(one.gaps_s is None for one in timings):
        del found["between_tokens"]
    return found


def gaps_s(timings: Iterable[Timing]) -> Iterable[float]:
    """Of all answers whose gaps were noted."""
    return (gap for one in timings if one.gaps_s is not None for gap in one.gaps_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """What each request is promised: the first token so long after it came, and no gap between two
    tokens longer than that. Infinite: not promised."""

    ttft_s: float = math.inf
    tbt_s: float = math.inf

    def is_met(self, one: Timing) -> bool:
        """By the first token and every later one."""
        return one.ttft_s <= self.ttft_s and (
            math.isinf(self.tbt_s) or one.longest_gap_s <= self.tbt_s
        )

    def num_met(self, timings: Iterable[Timing]) -> int:
        """Requests that got what they were promised. Over the seconds of a run this is its
        goodput."""
        return sum(map(self.is_met, timings))

    def num_stalls(self, timings: Iterable[Timing]) -> int:
        """Gaps that are longer than promised."""
        return sum(gap > self.tbt_s for gap in gaps_s(timings))
