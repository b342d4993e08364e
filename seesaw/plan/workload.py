"""How long prompts and answers are: what a plan is made for, and a simulation draws from.

Owns the known workloads and their names. Reads no file: lengths of a batch file come as `Listed`.
"""

from __future__ import annotations

import math
import random
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

from seesaw.errors import ConfigError, nearest


class Lengths(NamedTuple):
    """Tokens of one request."""

    prompt: int
    answer: int


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When the requests of a trace came: so many a second, with gaps that vary by `cv` (standard
    deviation over mean; 1 = Poisson)."""

    rate_per_s: float
    cv: float


class Workload(Protocol):
    """`name` as people give it; `source` says where the lengths come from."""

    @property
    def name(self) -> str: ...

    @property
    def source(self) -> str: ...

    @property
    def arrivals(self) -> Arrivals | None:
        """Those of the trace; None where the lengths come without."""
        ...

    def draw(self, count: int, seed: int) -> list[Lengths]:
        """The lengths of `count` requests; the same for the same seed."""
        ...


@dataclass(frozen=True, slots=True)
class Constant:
    """Every request is the same."""

    name: str
    source: str
    lengths: Lengths
    arrivals: Arrivals | None = None

    def draw(self, count: int, seed: int) -> list[Lengths]:
        return [self.lengths] * count


class Listed:
    """The lengths of given requests, in their order and from the start again after the last."""

    arrivals: Arrivals | None = None

    def __init__(self, name: str, lengths: Iterable[Lengths]) -> None:
        """Raises ConfigError without any request, or if a length is below 1."""
        self.name = name
        self.lengths = tuple(lengths)
        self.source = f"{len(self.lengths)} requests of {name}"
        if not self.lengths:
            raise ConfigError(f"workload {name}: no request in it. Give at least one.")
        for number, one in enumerate(self.lengths):
            if one.prompt < 1 or one.answer < 1:
                raise ConfigError(
                    f"workload {name}: request {number} has a prompt of {one.prompt} and an answer "
                    f"of {one.answer} tokens; expected 1 or more of both."
                )

    def draw(self, count: int, seed: int) -> list[Lengths]:
        return [self.lengths[number % len(self.lengths)] for number in range(count)]


PERCENTS = (0.0, 0.05, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 1.0)


class Quantiles:
    """Lengths with a given mean and given quantiles at `ranks`, which go from 0 to 1.

    Between two of them the length grows as a power of the rank, one power for all: a power of 1
    (straight lines) would miss the mean, and there is exactly one that meets it.
    """

    def __init__(
        self, mean: float, values: Sequence[float], ranks: Sequence[float] = PERCENTS
    ) -> None:
        assert len(values) == len(ranks), f"{len(values)} values for {len(ranks)} ranks"
        assert all(one <= other for one, other in pairwise(values)), f"{values} do not rise"
        self.mean = mean
        self.values = tuple(values)
        self.ranks = tuple(ranks)
        widths = [other - one for one, other in pairwise(ranks)]
        low = sum(width * value for width, value in zip(widths, values, strict=False))
        high = sum(width * value for width, value in zip(widths, values[1:], strict=True))
        assert low < mean < high, f"no lengths with these quantiles have the mean {mean}"
        # The mean of low + (high - low) * t ** power over t in [0, 1] is
        # low + (high - low) / (1 + power).
        self.power = (high - low) / (mean - low) - 1.0

    def __call__(self, rank: float) -> int:
        """The length below which a share `rank` of all lengths lies; at least 1 token."""
        at = min(max(bisect_left(self.ranks, rank), 1), len(self.ranks) - 1)
        low, high = self.ranks[at - 1], self.ranks[at]
        share = (rank - low) / (high - low)
        one, other = self.values[at - 1], self.values[at]
        length: float = one + (other - one) * share**self.power
        return max(1, round(length))


@dataclass(frozen=True, slots=True)
class Fitted:
    """Lengths as in a public trace: by quantiles of both, and how one depends on the other.

    Where a trace was cut to a total length, about one request in a hundred is longer here.
    """

    name: str
    source: str
    prompt: Quantiles
    answer: Quantiles
    normal_correlation: float = 0.0
    """Of the normal variables whose ranks are those of prompt and answer (a Gaussian copula)."""
    arrivals: Arrivals | None = None

    def draw(self, count: int, seed: int) -> list[Lengths]:
        rng = random.Random(seed)
        shared = self.normal_correlation
        if not shared:
            return [
                Lengths(self.prompt(rng.random()), self.answer(rng.random())) for _ in range(count)
            ]
        own = math.sqrt(1.0 - shared * shared)
        drawn = []
        for _ in range(count):
            one = rng.gauss(0.0, 1.0)
            other = shared * one + own * rng.gauss(0.0, 1.0)
            drawn.append(Lengths(self.prompt(_rank(one)), self.answer(_rank(other))))
        return drawn


@dataclass(frozen=True, slots=True)
class Mixed:
    """Each request is of one of several workloads, drawn with the share of that one."""

    name: str
    source: str
    parts: Sequence[tuple[float, Workload]]
    """Shares, which add up to 1, and workloads."""
    arrivals: Arrivals | None = None

    def draw(self, count: int, seed: int) -> list[Lengths]:
        rng = random.Random(f"{seed}/mixed")
        shares = [share for share, _ in self.parts]
        which = rng.choices(range(len(shares)), shares, k=count)
        drawn = [
            iter(one.draw(which.count(at), seed + at)) for at, (_, one) in enumerate(self.parts)
        ]
        return [next(drawn[at]) for at in which]


def _rank(normal: float) -> float:
    return 0.5 * (1.0 + math.erf(normal / math.sqrt(2.0)))


def mean_lengths(workload: Workload, count: int, seed: int) -> tuple[float, float]:
    """Mean tokens of the prompts and of the answers that `draw(count, seed)` gives, count >= 1."""
    drawn = workload.draw(count, seed)
    prompts = sum(lengths.prompt for lengths in drawn)
    return prompts / count, sum(lengths.answer for lengths in drawn) / count


# -- the known ones --------------------------------------------------------------------------------
# Quantiles: computed from the public files. The smallest length is not tabulated; 1 is taken.

SARATHI_SERVE = (0.0, 0.50, 0.90, 1.0)
NEXUS = (0.0, 0.50, 0.95, 0.99, 1.0)
"""Ranks at which papers give quantiles, with the ends. Those of the smallest and of the largest
lengths are not published: 1 and a tenth above P99 are taken where nothing else is said."""


def _of_nexus(name: str, what: str, prompt: tuple[float, ...], answer: tuple[float, ...]) -> Fitted:
    """`prompt` and `answer`: mean, median, P95, P99."""
    fit, other = (
        Quantiles(mean, (1, *values, 1.1 * values[-1]), NEXUS) for mean, *values in (prompt, answer)
    )
    return Fitted(name, f"{what}, by the quantiles that Nexus' paper gives", fit, other)


_NEXUS = {
    one.name: one
    for one in (
        _of_nexus(
            "nexus-ldc", "Long Data Collections", (5905, 5461, 9292, 9817), (180, 159, 339, 454)
        ),
        _of_nexus(
            "nexus-arxiv", "arXiv summarisation", (3832, 3575, 6460, 6894), (200, 181, 357, 443)
        ),
        _of_nexus("nexus-sharegpt", "ShareGPT", (496, 432, 970, 1367), (97, 37, 383, 474)),
    )
}
_WORKLOADS: tuple[Workload, ...] = (
    Constant(
        "arxiv",
        "mean lengths of Seesaw's arXiv summarisation requests, the same for each",
        Lengths(3000, 250),
    ),
    Constant(
        "sharegpt",
        "mean lengths of Seesaw's ShareGPT requests, the same for each",
        Lengths(350, 300),
    ),
    Fitted(
        "sharegpt-8k",
        "30731 rounds of ShareGPT filtered to 8k tokens of Llama 2 (Sarathi-Serve's trace)",
        Quantiles(2340, (1, 29, 580, 1730, 3735, 5696, 6563, 7434, 8141)),
        Quantiles(439, (1, 44, 228, 415, 628, 834, 920, 998, 1024)),
    ),
    Fitted(
        "arxiv-4k",
        "28257 requests of arXiv summarisation filtered to 4k tokens (Vidur's trace)",
        Quantiles(2588, (1, 749, 1986, 2730, 3370, 3702, 3813, 3933, 4054)),
        Quantiles(291, (1, 60, 115, 167, 242, 372, 736, 3271, 4056)),
        # Gives the trace's correlation of lengths, -0.46.
        normal_correlation=-0.7,
    ),
    Fitted(
        "azure-code",
        "8819 requests of Azure's code service, 2023 (Splitwise's trace)",
        Quantiles(2048, (1, 75, 578, 1469, 2745, 5188, 7303, 7436, 7437)),
        Quantiles(28, (1, 6, 9, 13, 24, 55, 90, 252, 1899)),
        arrivals=Arrivals(rate_per_s=2.57, cv=13.2),
    ),
    Fitted(
        "azure-conv",
        "19366 requests of Azure's conversation service, 2023 (Splitwise's trace)",
        Quantiles(1155, (1, 181, 396, 1020, 1189, 2735, 4083, 4142, 14050)),
        Quantiles(211, (1, 41, 85, 129, 395, 424, 451, 601, 1000)),
        arrivals=Arrivals(rate_per_s=5.53, cv=1.09),
    ),
    Fitted(
        "arxiv-16k",
        "arXiv summarisation filtered to 16k tokens, by the median, P90 and standard deviation "
        "that Sarathi-Serve's paper gives (straight lines, the shortest such that the latter "
        "is met)",
        Quantiles(7823, (2400, 7059, 12985, 16000), SARATHI_SERVE),
        Quantiles(226, (70, 208, 371, 450), SARATHI_SERVE),
    ),
    Fitted(
        "mooncake-conv",
        "12031 requests of Kimi's conversations (Mooncake's trace); lengths alone, no prefixes",
        Quantiles(12035, (1, 901, 2307, 6909, 15367, 27367, 39551, 85400, 126195)),
        Quantiles(343, (1, 10, 157, 350, 472, 597, 698, 1119, 2000)),
        arrivals=Arrivals(rate_per_s=3.40, cv=3.0),
    ),
    Fitted(
        "mooncake-synthetic",
        "3993 requests of Mooncake's synthetic trace; lengths alone, no prefixes",
        Quantiles(15326, (1, 22, 277, 11587, 23175, 38611, 48905, 66456, 191378)),
        Quantiles(149, (1, 2, 11, 69, 250, 389, 519, 768, 893)),
        arrivals=Arrivals(rate_per_s=3.9, cv=1.01),
    ),
    *_NEXUS.values(),
    Mixed(
        "nexus-mixed",
        "60% ShareGPT and 40% Long Data Collections, as in Nexus' paper",
        ((0.6, _NEXUS["nexus-sharegpt"]), (0.4, _NEXUS["nexus-ldc"])),
    ),
)
_KNOWN = {workload.name: workload for workload in _WORKLOADS}


def known_workloads() -> tuple[str, ...]:
    return tuple(_KNOWN)


def parse_workload(text: str) -> Workload:
    """A known workload's name, or `IN:OUT` for prompts of IN and answers of OUT tokens each.

    Raises ConfigError that lists what is known.
    """
    found = _KNOWN.get(text.strip().lower())
    if found is not None:
        return found
    match = re.fullmatch(r"\s*([+-]?\d+)\s*:\s*([+-]?\d+)\s*", text)
    if match is None:
        raise ConfigError(
            f"workload={text!r}: not known.{nearest(text, _KNOWN)} Known: {', '.join(_KNOWN)}; "
            "or IN:OUT, tokens of each prompt and answer, such as 1024:128."
        )
    lengths = Lengths(int(match[1]), int(match[2]))
    if lengths.prompt < 1 or lengths.answer < 1:
        raise ConfigError(
            f"workload={text!r}: got {lengths.prompt} prompt and {lengths.answer} answer tokens, "
            "expected 1 or more of both."
        )
    return Constant(f"{lengths.prompt}:{lengths.answer}", "as given", lengths)
