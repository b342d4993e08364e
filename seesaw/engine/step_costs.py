"""What the cost model gives a step, a copy or a change of layout of the engine at hand, in seconds,
to be set beside what was measured."""

from __future__ import annotations

from dataclasses import dataclass, fields

from seesaw.engine.build import plan_weights, pool_shape
from seesaw.engine.messages import RankSetup
from seesaw.engine.predict import relay_block_takes
from seesaw.layout.kv import owned_heads, transfer_bytes
from seesaw.plan.cost_model import CostModel, StageTime
from seesaw.plan.machine import Machine
from seesaw.plan.work import WorkCounter
from seesaw.scheduler.output import Phase, SchedulerOutput
from seesaw.scheduler.step_times import StepTimer

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
        self._copy_s: dict[tuple[str, Phase], float] = {}
        for phase in phases:
            costs, layout = self._costs[phase], setup.layout(phase)
            pools = [pool_shape(setup, phase, rank) for rank in ranks]
            held = [transfer_bytes(pool, setup.block_size) for pool in pools]
            owned = [
                transfer_bytes(pool, setup.block_size, owned_heads(layout, setup.spec, rank).size)
                for rank, pool in enumerate(pools)
            ]
            for kind, sizes, rate in (
                ("store", owned, costs.store_bytes_per_s), ("load", held, costs.load_bytes_per_s)
            ):  # fmt: skip
                slowest_s = max(size / rate(rank) for rank, size in enumerate(sizes))
                self._copy_s[kind, phase] = slowest_s / sum(sizes)
        takes = relay_block_takes(setup)
        relayed = sum(sum(sizes.values()) for sizes in takes)
        relay_s = max(
            self._costs["decode"].transition_s(rank, sizes) for rank, sizes in enumerate(takes)
        )
        self._copy_s["relay", "decode"] = relay_s / max(1, relayed)

    def step(self, step: SchedulerOutput) -> StepSeconds:
        """Of a step with rows."""
        rows = step.rows
        timer = StepTimer(self._costs[step.phase], self._counter)
        terms: StageTime = timer.slowest(rows)
        bound = dict.fromkeys(KINDS.values(), 0.0)
        for one in fields(terms):
            bound[KINDS[one.name]] += getattr(terms, one.name)
        return StepSeconds(timer.times(rows).stages_s, bound)

    def weights_s(self, phase: Phase) -> float:
        """Until the slowest rank has its weights of `phase`, where nothing else is done."""
        return self._weights_s.get(phase, 0.0)

    def copy_s(self, kind: str, phase: Phase, num_bytes: int) -> float:
        """Of the slowest rank, for a store from the pool of `phase`, a load or relay to it, of so
        many bytes over all ranks, when they have the link for themselves."""
        return num_bytes * self._copy_s[kind, phase]
