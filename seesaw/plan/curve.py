"""A measured relation between two positive figures, such as rows of a product and flop/s."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from seesaw.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Curve:
    """Points by rising x. Between two of them y follows a power of x; beyond the ends it stays."""

    xs: tuple[float, ...]
    ys: tuple[float, ...]

    @classmethod
    def of(cls, points: Sequence[Sequence[float]], what: str) -> Curve:
        """`[[x, y], ...]`. Raises ConfigError naming `what` unless x rises and all are positive."""
        pairs = [tuple(point) for point in points]
        rising = all(one[0] < other[0] for one, other in pairwise(pairs))
        if not pairs or not rising or not all(len(p) == 2 and p[0] > 0 < p[1] for p in pairs):
            raise ConfigError(
                f"{what}={points!r}: expected [[x, y], ...] of positive numbers, x rising."
            )
        return cls(tuple(x for x, _ in pairs), tuple(y for _, y in pairs))

    @classmethod
    def flat(cls, y: float) -> Curve:
        return cls((1.0,), (y,))

    def __call__(self, x: float) -> float:
        xs, ys = self.xs, self.ys
        at = bisect_left(xs, x)
        if at == 0:
            return ys[0]
        if at == len(xs):
            return ys[-1]
        low, high = xs[at - 1], xs[at]
        share = math.log(x / low) / math.log(high / low)
        return ys[at - 1] * math.exp(share * math.log(ys[at] / ys[at - 1]))
