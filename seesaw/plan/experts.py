"""How many experts a step reads and computes on the busiest of the ranks that share a layer.

Real routers prefer some experts. Choices are modelled as independent of one another, an expert of
popularity rank r being drawn with a weight of r ** -skew, `num_experts_per_tok` different ones for
each token, and which experts a rank holds as independent of their popularity.

128 experts of which 8 are chosen: a skew of 1.3 gives the coverage that was measured for decode
steps of Qwen3-30B-A3B (layered prefill, arXiv 2510.08055, table 1: below .50, about .55, below .70
and .863 of the experts at 16, 32, 64 and 128 rows, here .37, .53, .71 and .87; equally likely
experts would be .64, .87, .98 and 1). 8 experts of which 2 are chosen: a skew of 0.7 makes the
busiest one work twice the mean; limiting what that one takes was reported to win 1.94 times on
Mixtral-8x7B (Capacity-Aware Inference, arXiv 2503.05066). Tokens of one prompt are taken
as independent too, though they agree more: one chunk of 512 was measured to read .82 of 128
experts, here all of them.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache

from seesaw.layout.ranges import split
from seesaw.plan.curve import Curve

SKEW = Curve.of([(8, 0.7), (128, 1.3)], "skew")
"""Over the number of experts; between and beyond the two it is a guess."""
PLACEMENTS = 100
"""Of experts on ranks, drawn with a fixed seed, over which the busiest rank is averaged."""
TOKENS = tuple(2.0**i for i in range(21))
"""Of a step, at which touched experts are tabulated; a power of them between."""


class ExpertLoad:
    """Of a sparse layer whose experts lie on `num_ranks` ranks, as `layout.ranges` cuts them."""

    def __init__(self, num_experts: int, num_chosen: int, num_ranks: int) -> None:
        rates = choice_rates(num_experts, num_chosen)
        chances = [1.0 - math.exp(-rate) for rate in rates]
        if num_ranks == 1:
            self.rows_per_token = float(num_chosen)
            touched = [coverage(rates, tokens) * num_experts for tokens in TOKENS]
        else:
            self.rows_per_token, touched = _busiest(rates, chances, num_ranks)
        self._touched = Curve(TOKENS, tuple(touched))

    def touched(self, num_tokens: float) -> float:
        """Experts that the busiest rank reads."""
        return self._touched(num_tokens)

    def rows(self, num_tokens: float) -> float:
        """Pairs of a token and an expert that the busiest rank computes."""
        return max(self.touched(num_tokens), num_tokens * self.rows_per_token)


@lru_cache(maxsize=64)
def expert_load(num_experts: int, num_chosen: int, num_ranks: int) -> ExpertLoad:
    return ExpertLoad(num_experts, num_chosen, num_ranks)


def choice_rates(num_experts: int, num_chosen: int) -> list[float]:
    """Rate of each expert, the most popular first: n tokens leave it out with exp(-rate * n).

    The rates are proportional to the weights and such that a token chooses `num_chosen` experts:
    the asymptotic inclusion probabilities of successive sampling (Rosen 1972).
    """
    if num_chosen == num_experts:
        return [math.inf] * num_experts
    skew = SKEW(num_experts)
    weights = [(rank + 1) ** -skew for rank in range(num_experts)]

    def chosen(scale: float) -> float:
        return sum(-math.expm1(-weight * scale) for weight in weights)

    low, high = 0.0, 1.0
    while chosen(high) < num_chosen:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if chosen(middle) < num_chosen else (low, middle)
    return [weight * high for weight in weights]


def coverage(rates: Sequence[float], num_tokens: float) -> float:
    """Share of the experts that some of `num_tokens` tokens choose."""
    return sum(-math.expm1(-rate * num_tokens) for rate in rates) / len(rates)


def _busiest(
    rates: Sequence[float], chances: Sequence[float], num_ranks: int
) -> tuple[float, list[float]]:
    """Rows per token, and experts touched for each of TOKENS, of the rank that has most."""
    rng = random.Random(0)
    held = [split(len(rates), num_ranks, rank) for rank in range(num_ranks)]
    order = list(range(len(rates)))
    rows, touched = 0.0, [0.0] * len(TOKENS)
    for _ in range(PLACEMENTS):
        rng.shuffle(order)
        # After how many tokens an expert is first chosen.
        first = [0.0 if math.isinf(rate) else rng.expovariate(rate) for rate in rates]
        ranks = [[order[at] for at in range(*part)] for part in held]
        rows += max(sum(chances[expert] for expert in experts) for experts in ranks)
        arrivals = [sorted(first[expert] for expert in experts) for experts in ranks]
        for at, tokens in enumerate(TOKENS):
            touched[at] += max(bisect_right(on_rank, tokens) for on_rank in arrivals)
    return rows / PLACEMENTS, [count / PLACEMENTS for count in touched]
