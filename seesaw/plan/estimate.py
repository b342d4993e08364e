"""How long a job takes in one candidate: layouts, policy, chunk and memory.

Owns replicas and what an estimate says; the time of a replica is `schedules`' business.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from seesaw.config import EngineConfig, ReshardFrom
from seesaw.families.spec import ModelSpec
from seesaw.layout.parallel import ParallelLayout
from seesaw.plan.cost_model import CostModel
from seesaw.plan.demand import Demand
from seesaw.plan.machine import Machine
from seesaw.plan.memory import MemoryPlan
from seesaw.plan.rotation import Rotation, plan_rotation
from seesaw.plan.schedules import Phases, Replica
from seesaw.plan.stages import balanced
from seesaw.plan.step_times import Steps
from seesaw.plan.transition import Moved, landings, visible_s
from seesaw.plan.work import Work, WorkCounter


def name_of(prefill: ParallelLayout, decode: ParallelLayout) -> str:
    """`pp8 -> tp8`, or `tp8` where both are one."""
    return decode.short if prefill == decode else f"{prefill.short} -> {decode.short}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A job in one candidate. `decode_batch` is of one replica. `prefill_s` and `decode_s` are
    steps of prompts alone and answers alone, `mixed_s` steps of both; seconds add up to
    `elapsed_s`. Rates are of the whole machine; `tokens_per_s` counts prompts and answers.
    """

    prefill: ParallelLayout
    decode: ParallelLayout
    policy: str
    max_num_batched_tokens: int
    memory: MemoryPlan
    decode_batch: float
    prefill_s: float
    decode_s: float
    mixed_s: float
    transition_s: float
    num_transitions: int
    elapsed_s: float
    requests_per_s: float
    tokens_per_s: float
    output_tokens_per_s: float
    prefill_bottleneck: str
    decode_bottleneck: str
    reshard_from: ReshardFrom = "auto"
    """Where weights come from when the layout changes."""
    rotation: Rotation | None = None
    """Running requests that take turns in the decode pool of a replica, if they do."""

    @property
    def is_split(self) -> bool:
        return self.prefill != self.decode

    @property
    def estimated_as(self) -> str:
        """The built-in policy of whose steps this is: `policy`, or the one that stands for it."""
        return "seesaw" if self.memory.tier_blocks else "continuous"

    @property
    def caveat(self) -> str:
        """In words, where another policy stands for `policy`."""
        if self.policy == self.estimated_as:
            return ""
        return f"Steps of policy {self.policy!r} are estimated as those of {self.estimated_as!r}."

    @property
    def name(self) -> str:
        return name_of(self.prefill, self.decode)


class Estimator:
    """Estimates of one demand on one machine, with what `config` says of steps and copies.
    `kv_bytes` of an element of KV, where it is not `dtype`'s."""

    def __init__(
        self, spec: ModelSpec, machine: Machine, demand: Demand, dtype: str,
        config: EngineConfig, *, kv_bytes: int | None = None,
    ) -> None:  # fmt: skip
        self.spec = spec
        self.config = config
        self.machine = machine
        self.demand = demand
        self.dtype = dtype
        self.kv_bytes = kv_bytes
        self._counter = WorkCounter(spec)
        self._costs: dict[tuple[ParallelLayout, int], CostModel] = {}
        self._steps: dict[tuple[ParallelLayout, int, int, int], Steps] = {}

    def estimate(
        self, prefill: ParallelLayout, decode: ParallelLayout, policy: str, chunk: int,
        memory: MemoryPlan, moved: tuple[Moved, Moved] | None,
    ) -> Estimate:  # fmt: skip
        """Both layouts with all their replicas. `moved`: what a change to decode and back moves,
        None where the layouts are one."""
        dp = decode.dp
        demand = self._per_replica(dp)
        # Requests go to replicas in turn, so the slowest of them ends last.
        found = max(
            (
                self._replica(prefill.replica, decode.replica, start, chunk, memory, demand, moved)
                for start in self._starts(decode)
            ),
            key=lambda phases: phases.elapsed_s,
        )
        elapsed_s = found.elapsed_s
        requests_per_s = self.demand.num_requests / elapsed_s
        output = requests_per_s * self.demand.answer
        answers = found.decode if found.decode.seconds else found.mixed
        prompts = found.prefill if found.prefill.seconds else found.mixed
        return Estimate(
            prefill=prefill,
            decode=decode,
            policy=policy,
            max_num_batched_tokens=chunk,
            memory=memory,
            decode_batch=found.decode_batch,
            prefill_s=found.prefill.seconds,
            decode_s=found.decode.seconds,
            mixed_s=found.mixed.seconds,
            transition_s=found.transition_s,
            num_transitions=found.num_transitions,
            elapsed_s=elapsed_s,
            requests_per_s=requests_per_s,
            tokens_per_s=output + requests_per_s * self.demand.prompt,
            output_tokens_per_s=output,
            prefill_bottleneck=prompts.bottleneck,
            decode_bottleneck=answers.bottleneck,
            rotation=found.rotation,
        )

    def for_demand(self, demand: Demand) -> Estimator:
        """The same model on the same machine for other requests."""
        return Estimator(
            self.spec, self.machine, demand, self.dtype, self.config, kv_bytes=self.kv_bytes
        )  # fmt: skip

    def balanced(
        self, layout: ParallelLayout, chunk: int, tokens: float, rows: float
    ) -> ParallelLayout:
        """`layout` with the layers of its stages chosen for steps of `tokens` of prompts beside
        `rows` that decode; where replicas differ, for the devices of the first."""
        steps = self._get_steps(layout.replica, 0, chunk, self._per_replica(layout.dp))
        return replace(balanced(steps.costs, steps.work(tokens, rows)), dp=layout.dp)

    def _per_replica(self, dp: int) -> Demand:
        return replace(self.demand, num_requests=math.ceil(self.demand.num_requests / dp))

    def _starts(self, layout: ParallelLayout) -> list[int]:
        """First ranks of the replicas that differ in their devices."""
        size = layout.replica.num_ranks
        found: dict[tuple[str, ...], int] = {}
        for start in range(0, layout.num_ranks, size):
            kinds = tuple(device.slug for device in self.machine.devices[start : start + size])
            found.setdefault(kinds, start)
        return list(found.values())

    def _replica(
        self, prefill: ParallelLayout, decode: ParallelLayout, start: int, chunk: int,
        memory: MemoryPlan, demand: Demand, moved: tuple[Moved, Moved] | None,
    ) -> Phases:  # fmt: skip
        steps = {
            "prefill": self._get_steps(prefill, start, chunk, demand),
            "decode": self._get_steps(decode, start, chunk, demand),
        }
        config = self.config
        rotation = plan_rotation(
            config.running_tier, steps["decode"], memory, demand, config.max_num_seqs
        )
        replica = Replica(
            demand, memory, steps,
            chunk=chunk, max_num_seqs=config.max_num_seqs, rotation=rotation,
            overlap=config.overlap,
        )  # fmt: skip
        if memory.tier_blocks == 0:
            return replica.continuous()
        if moved is None:
            return replica.seesaw(0.0, 0.0)
        prompts, answers = steps["prefill"], steps["decode"]
        work = answers.work(0, replica.batch / answers.groups(replica.batch))
        to_decode_s = self._change_s(prompts, answers, work, moved[0])
        to_prefill_s = self._change_s(answers, prompts, prompts.work(chunk, 0), moved[1])
        return replica.seesaw(to_decode_s, to_prefill_s)

    def _change_s(self, old: Steps, new: Steps, work: Work, moved: Moved) -> float:
        """What is seen of a change before a step of `work`."""
        costs = new.costs
        landed = landings(costs, moved, old.costs.layout, costs.layout, self.config)
        if not (self.config.overlap and costs.has_copy_engines):
            return max(one.last_s for one in landed)
        return visible_s(landed, costs.stages_s(work), costs.send_s(work.num_tokens))

    def _get_steps(self, layout: ParallelLayout, start: int, chunk: int, demand: Demand) -> Steps:
        key = (layout, start, chunk, demand.num_requests)
        if key not in self._steps:
            if (layout, start) not in self._costs:
                part = self.machine.part(start, layout.num_ranks)
                self._costs[layout, start] = CostModel(
                    self.spec, part, layout, self.dtype, kv_bytes=self.kv_bytes
                )
            costs = self._costs[layout, start]
            self._steps[key] = Steps(costs, self._counter, demand, chunk)
        return self._steps[key]
