"""A load: who asks for how much, and when. The same for every system that it is put on.

Lengths and arrivals are drawn from seeds of their own, so another rate has the same requests in the
same order, with all gaps longer or shorter by one factor.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from seesaw.errors import ConfigError
from seesaw.plan.workload import Arrivals, Lengths, Workload
from seesaw.simulate.arrivals import draw_arrivals
from seesaw.simulate.scenario import Arrival

MOST_DRAWS = 64
"""For each request that is wanted, where some are too long."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """`requests` by rising arrival, the first at 0."""

    requests: Sequence[Arrival]
    rate_per_s: float
    seed: int

    @property
    def span_s(self) -> float:
        """Until the last request has come."""
        return self.requests[-1].arrival_s

    def prompts(self, vocab_size: int) -> list[list[int]]:
        """Uniformly random tokens; the same for the same seed and lengths."""
        rng = random.Random(f"{self.seed}/prompts")
        return [[rng.randrange(vocab_size) for _ in range(one.prompt)] for one in self.requests]


@dataclass(frozen=True)
class Traffic:
    """What loads of any rate are drawn from. `cv` as in `plan.workload.Arrivals`; requests of more
    than `longest` tokens, prompt and answer, are drawn again."""

    workload: Workload
    num_requests: int
    cv: float
    seed: int
    longest: int | None = None

    @cached_property
    def lengths(self) -> Sequence[Lengths]:
        """Raises ConfigError where hardly any request is short enough."""
        count, longest = self.num_requests, self.longest
        if longest is None:
            return self.workload.draw(count, self.seed)
        drawn = count
        while drawn <= MOST_DRAWS * count:
            lengths = self.workload.draw(drawn, self.seed)
            fit = [one for one in lengths if one.prompt + one.answer <= longest]
            if len(fit) >= count:
                return fit[:count]
            drawn *= 2
        shortest = min(one.prompt + one.answer for one in lengths)
        raise ConfigError(
            f"longest={longest}: hardly any request of workload {self.workload.name} is that "
            f"short; the shortest of {len(lengths)} has {shortest} tokens, prompt and answer. "
            "Raise it, or take another workload."
        )

    def at(self, rate_per_s: float) -> Load:
        """Raises ConfigError for a rate that is none."""
        times = draw_arrivals(Arrivals(rate_per_s, self.cv), self.num_requests, self.seed)
        requests = [
            Arrival(at_s, one.prompt, one.answer)
            for at_s, one in zip(times, self.lengths, strict=True)
        ]
        return Load(requests=requests, rate_per_s=rate_per_s, seed=self.seed)


def check_lengths(lengths: Sequence[Lengths], max_model_len: int) -> None:
    """Raises ConfigError for a request that could never run."""
    for number, one in enumerate(lengths):
        if one.prompt + one.answer > max_model_len:
            raise ConfigError(
                f"request {number} has {one.prompt} prompt and {one.answer} answer tokens, more "
                f"than max_model_len={max_model_len}. Give --longest {max_model_len}, which draws "
                "such ones again, or another workload."
            )
