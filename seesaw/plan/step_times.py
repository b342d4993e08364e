"""What steps of one layout cost for a demand, and what takes the time of many of them.

Asks the cost model for steps of mean composition; which steps a job has is `schedules`' business.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Self

from seesaw.plan.cost_model import CostModel, StageTime
from seesaw.plan.demand import Demand
from seesaw.plan.work import Work, WorkCounter

WORDS = {
    "weights_s": "weight reads",
    "matmul_s": "matrix products",
    "attention_s": "attention",
    "kv_s": "KV reads",
    "all_reduce_s": "all-reduce",
    "elementwise_s": "element-wise operations",
    "overhead_s": "launches and calls",
}
BUBBLES, HOST_LINK = "pipeline bubbles", "host link"


@dataclass(slots=True)
class Spent:
    """Seconds of one kind of step, and by what took them."""

    seconds: float
    terms: dict[str, float]

    @classmethod
    def nothing(cls) -> Self:
        return cls(0.0, {})

    def add(self, terms: StageTime, seconds: float, times: float) -> None:
        """`times` steps of `seconds` each, of which the slowest stage computes by `terms`."""
        for field in fields(terms):
            self.count(WORDS[field.name], times * getattr(terms, field.name))
        self.count(BUBBLES, times * (seconds - terms.total_s))
        self.seconds += times * seconds

    def wait(self, what: str, seconds: float) -> None:
        self.count(what, seconds)
        self.seconds += seconds

    def count(self, what: str, seconds: float) -> None:
        self.terms[what] = self.terms.get(what, 0.0) + seconds

    @property
    def bottleneck(self) -> str:
        if self.seconds <= 0:
            return ""
        return max(self.terms, key=lambda what: self.terms[what])


class Steps:
    """What steps of one layout cost for a demand."""

    def __init__(self, costs: CostModel, counter: WorkCounter, demand: Demand, chunk: int) -> None:
        self.costs = costs
        self.pp = costs.layout.pp
        self._demand = demand
        prompt = max(1, round(demand.prompt))
        size = min(prompt, chunk)
        starts = range(0, prompt, size)
        of_prompt = counter.count(
            [(min(size, prompt - start), min(start + size, prompt), False) for start in starts]
        )
        # Long prompts count more than the mean one.
        longer = demand.prompt_square / demand.prompt**2
        self._pairs = of_prompt.pairs / prompt * longer
        self._keys = of_prompt.chunk_keys / prompt * longer
        self._decode_keys = counter.count([(1, round(demand.context), True)]).decode_keys

    def work(self, chunk: float, rows: float) -> Work:
        """Of a step with `chunk` tokens of prompts and `rows` that decode."""
        prompts = chunk / self._demand.prompt
        return Work(
            num_tokens=max(1, round(chunk + rows)),
            num_rows=max(1, round(rows + math.ceil(prompts))),
            num_sampled=round(rows + prompts),
            pairs=chunk * self._pairs,
            chunk_keys=chunk * self._keys,
            decode_keys=rows * self._decode_keys,
            num_decodes=round(rows),
        )

    def step(self, chunk: float, rows: float) -> tuple[StageTime, float, float]:
        """(terms of the slowest stage, its seconds, seconds through all stages)."""
        work = self.work(chunk, rows)
        stages = self.costs.stages_s(work)
        slowest = max(range(self.pp), key=stages.__getitem__)
        through = sum(stages)
        if self.pp > 1:
            through += (self.pp - 1) * self.costs.send_s(work.num_tokens)
        return self.costs.stage(slowest, work), stages[slowest], through

    def groups(self, requests: float) -> float:
        """Of rows that are in different stages at once."""
        return min(float(self.pp), max(1.0, requests))

    def rounds(self, into: Spent, requests: float, rounds: float) -> None:
        """Each of `requests` decodes a token in each of `rounds`."""
        groups = self.groups(requests)
        terms, slowest, through = self.step(0, requests / groups)
        into.add(terms, max(slowest, through / groups), rounds * groups)
