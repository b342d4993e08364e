"""How many experts a step reads and computes on the busiest of the ranks that share a layer.

Real routers prefer some experts. Choices are modelled as independent of one another, an expert of
popularity rank r being drawn with a weight of r ** -skew, `num_experts_per_tok` different ones for
each token, and which experts a rank holds as independent of their popularity.

128 experts of which 8 are chosen: a skew of 1.3 gives the coverage that was measured for decode
steps of Qwen3-30B-A3B (layered prefill, arXiv 2510.08055, table 1: below .50, about .55, below .70
and .863 of the experts at 16, 32, 64 and 128 rows, here .37, .53, .71 and .87; equally likely
experts would be .64, .87, .98 and 1). 8 experts of which 2 are chosen: a skew of 0.7 makes the
busiest one work twice the mean; limiting what that one takes was reported to win 1.94 times on
Mixtral-8x7B (Capacity-Aware Inference, arXiv 2503.05066).

Tokens of one prompt agree more than those of different answers: a chunk of 512 was measured to read
.82 of 128 experts, 2048 tokens .93, 8192 all (layered prefill, figure 2: 48, 54 and 58 GB), where
512 tokens of answers would read all. A skew that is higher by PROMPT_SKEW gives .83, .99 and 1.
Which experts a prompt prefers is independent of which ones answers do: what both leave out is the
product of what either does, as where the layered-prefill paper's own coverage is put together.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache

from seesaw.layout.ranges import split
from seesaw.plan.curve import Curve

SKEW = Curve.of([(8, 0.7), (128, 1.3)], "skew")
"""Over the number of experts; between and beyond the two it is a guess."""
PROMPT_SKEW = 0.8
"""Of prompts, beyond SKEW: fitted to the chunk of 512; the same for any number of experts is a
guess."""
PLACEMENTS = 100
"""Of experts on ranks, drawn with a fixed seed, over which the busiest rank is averaged."""
TOKENS = tuple(2.0**i for i in range(21))
"""Of a step, at which touched experts are tabulated; a power of them between."""


class ExpertLoad:
    """Of a sparse layer whose experts lie on `num_ranks` ranks, as `layout.ranges` cuts them."""

    def __init__(self, num_experts: int, num_chosen: int, num_ranks: int) -> None:
        self._num_held = split(num_experts, num_ranks, 0).size
        of_answers = choice_rates(num_experts, num_chosen)
        of_prompts = choice_rates(num_experts, num_chosen, PROMPT_SKEW)
        self.rows_per_token, self._by_answers = _busiest(of_answers, num_chosen, num_ranks)
        _, self._by_prompts = _busiest(of_prompts, num_chosen, num_ranks)

    def touched(self, num_tokens: float, num_prompt: float = 0) -> float:
        """Experts that the busiest rank reads, where `num_prompt` of the tokens are of prompts."""
        if num_prompt == 0:
            return self._by_answers(num_tokens)
        by_prompts = self._by_prompts(num_prompt)
        if num_prompt == num_tokens:
            return by_prompts
        by_answers = self._by_answers(num_tokens - num_prompt)
        return by_prompts + by_answers * (1 - by_prompts / self._num_held)

    def rows(self, num_tokens: float, num_prompt: float = 0) -> float:
        """Pairs of a token and an expert that the busiest rank computes."""
        touched = self.touched(num_tokens, num_prompt)
        return max(touched, num_tokens * self.rows_per_token)


@lru_cache(maxsize=64)
def expert_load(num_experts: int, num_chosen: int, num_ranks: int) -> ExpertLoad:
    return ExpertLoad(num_experts, num_chosen, num_ranks)


Coverage = Callable[[int, int], float]
"""(tokens of prompts, answers that decode beside them) -> share of the experts that they read."""


def chunked_passes(coverage: Coverage, prompt: int, chunk: int, decodes: int) -> float:
    """How often all experts are read until a prompt has been computed in chunks beside so many
    decodes: 1 = each expert of a layer once."""
    whole, rest = divmod(prompt, chunk)
    return whole * coverage(chunk, decodes) + (coverage(rest, decodes) if rest else 0.0)


def layered_passes(coverage: Coverage, prompt: int, groups: int, decodes: int) -> float:
    """The same where it runs one of `groups` groups of layers a step (layered prefill): each layer
    meets it once, and the decodes alone in the other steps."""
    return coverage(prompt, decodes) + (groups - 1) * coverage(0, decodes)


def choice_rates(num_experts: int, num_chosen: int, more_skew: float = 0.0) -> list[float]:
    """Rate of each expert, the most popular first: n tokens leave it out with exp(-rate * n).

    The rates are proportional to the weights and such that a token chooses `num_chosen` experts:
    the asymptotic inclusion probabilities of successive sampling (Rosen 1972).
    """
    if num_chosen == num_experts:
        return [math.inf] * num_experts
    skew = SKEW(num_experts) + more_skew
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


def _busiest(rates: Sequence[float], num_chosen: int, num_ranks: int) -> tuple[float, Curve]:
    """Rows per token of the rank that has most, and experts that it touches over tokens."""
    if num_ranks == 1:
        touched = [coverage(rates, tokens) * len(rates) for tokens in TOKENS]
        return float(num_chosen), Curve(TOKENS, tuple(touched))
    rng = random.Random(0)
    chances = [1.0 - math.exp(-rate) for rate in rates]
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
    return rows / PLACEMENTS, Curve(TOKENS, tuple(count / PLACEMENTS for count in touched))
