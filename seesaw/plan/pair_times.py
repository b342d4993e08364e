"""`PairTimes`: what two layouts that take turns are predicted to take, beside the second of them
alone, for jobs that turn out to have other lengths than expected.

Plain numbers, made when a pair is chosen, for the scheduler to decide by while the job runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from seesaw.plan.curve import Curve
from seesaw.plan.demand import Demand
from seesaw.plan.estimate import Estimate, Estimator
from seesaw.plan.transition import Moved
from seesaw.plan.workload import Lengths

FACTORS = (1 / 64, 1 / 16, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 16.0)
"""Answers of so many times the expected length are looked at, as far as they fit."""


@dataclass(frozen=True, slots=True)
class PairTimes:
    """Seconds of a replica for a token of the prompts, over the tokens of answers that come with
    it: of both layouts in turns, and of the decode layout alone, with the pair's memory."""

    turns: Curve
    decode_only: Curve


def pair_times(
    estimator: Estimator, one: Estimate, moved: tuple[Moved, Moved] | None
) -> PairTimes | None:
    """Of the pair of `one`, an estimate of `estimator`; None where no other lengths fit it."""
    demand = estimator.demand
    prompt = max(1, round(demand.prompt))
    most = one.memory.max_model_len - prompt
    answers = sorted({min(max(1, round(f * demand.answer)), most) for f in FACTORS if most >= 1})
    if len(answers) < 2:
        return None
    memory = one.memory
    ways = {
        "turns": (one.prefill, memory),
        "decode_only": (one.decode, replace(memory, tier_blocks=0)),
    }
    points: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for answer in answers:
        other = estimator.for_demand(Demand.of([Lengths(prompt, answer)], demand.num_requests))
        for way, (prefill, blocks) in ways.items():
            found = other.estimate(
                prefill, one.decode, one.policy, one.max_num_batched_tokens, blocks,
                moved if way == "turns" else None,
            )  # fmt: skip
            tokens = demand.num_requests * prompt / one.decode.dp
            points[way].append((answer / prompt, found.elapsed_s / tokens))
    return PairTimes(**{way: Curve.of(found, way) for way, found in points.items()})
