"""What the cost model gives a step, a copy or a change of layout of the engine at hand, in seconds,
to be set beside what was measured."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import chain

from seesaw.engine.build import plan_weights, pool_shape
from seesaw.engine.messages import RankSetup
from seesaw.engine.predict import relay_block_takes
from seesaw.layout.kv import owned_heads, transfer_bytes
from seesaw.plan.cost_model import CostModel, StageTime
from seesaw.plan.machine import Machine
from seesaw.plan.work import WorkCounter
from seesaw.scheduler.output import Phase, SchedulerOutput

KINDS = {
    "weights_s": "memory",
    "matmul_s": "compute",
    "attention_s": "compute",
    "kv_s": "memory",
    "all_reduce_s": "link",
    "elementwise_s": "compute",
    "overhead_s": "overhead",
}
"""What each term of a step is bound by."""


@dataclass(frozen=True, slots=True)
class StepSeconds:
    """Of each stage, and of the slowest one by what bounds it: compute, memory, link, overhead."""

    stages_s: list[float]
    bound_s: dict[str, float]


class StepCosts:
    """Of one replica; others are alike. `machine` has the devices of all. `source`: where its
    figures come from, in words."""

    def __init__(self, setup: RankSetup, machine: Machine, source: str) -> None:
        self.source = source
        self._counter = WorkCounter(setup.spec)
        self._block_size = setup.block_size
        part = machine.part(0, setup.num_ranks)
        phases: tuple[Phase, ...] = ("prefill", "decode")
        self._costs = {
            phase: CostModel(setup.spec, part, setup.layout(phase), setup.dtype) for phase in phases
        }
        ranks = range(setup.num_ranks)
        plans, self._weights_s = plan_weights(setup).changes, dict[Phase, float]()
        for phase, plan in plans.items():
            self._weights_s[phase] = max(
                self._costs[phase].transition_s(rank, plan.bytes_by_source(rank)) for rank in ranks
            )
        self._store_s = {
            phase: max(
                transfer_bytes(
                    pool_shape(setup, phase, rank),
                    self._block_size,
                    owned_heads(setup.layout(phase), setup.spec, rank).size,
                )
                / self._costs[phase].store_bytes_per_s(rank)
                for rank in ranks
            )
            for phase in phases
        }
        self._load_s = max(
            transfer_bytes(pool_shape(setup, "decode", rank), self._block_size)
            / self._costs["decode"].load_bytes_per_s(rank)
            for rank in ranks
        )

        self._relay_s = max(
            self._costs["decode"].transition_s(rank, takes)
            for rank, takes in enumerate(relay_block_takes(setup))
        )

    def step(self, step: SchedulerOutput) -> StepSeconds:
        """Of a step with rows."""
        rows = list(chain(*(lane.rows for lane in step.lanes)))
        _, starts, counts, _, _, samples = zip(*rows, strict=True)
        work = self._counter.count_columns(counts, starts, sum(samples))
        costs = self._costs[step.phase]
        stages = costs.stages_s(work)
        terms: StageTime = costs.stage(stages.index(max(stages)), work)
        bound = dict.fromkeys(KINDS.values(), 0.0)
        for one in fields(terms):
            bound[KINDS[one.name]] += getattr(terms, one.name)
        return StepSeconds(stages, bound)

    def weights_s(self, phase: Phase) -> float:
        """Until the slowest rank has its weights of `phase`, where nothing else is done."""
        return self._weights_s.get(phase, 0.0)

    def store_s(self, phase: Phase, num_tokens: int) -> float:
        """Of the slowest rank, when it has the link for itself."""
        return -(-num_tokens // self._block_size) * self._store_s[phase]

    def load_s(self, num_tokens: int) -> float:
        return -(-num_tokens // self._block_size) * self._load_s

    def relay_s(self, num_tokens: int) -> float:
        return -(-num_tokens // self._block_size) * self._relay_s
