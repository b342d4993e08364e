"""From a scenario to what runs it: memory, schedulers, and the clocks that stand for ranks.

The memory plan, the schedulers and the bytes that move are those of the engine; only time comes
from the cost model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from seesaw.layout.arena import plan_arena
from seesaw.layout.kv import PoolShape, TierShape, owned_heads, transfer_bytes
from seesaw.layout.parallel import ParallelLayout
from seesaw.layout.plain import PlainFormat
from seesaw.layout.plan import plan_reshard
from seesaw.layout.ranges import rank_ranges
from seesaw.layout.reshard import ReshardPlan
from seesaw.plan.cost_model import ELEMENT_BYTES, CostModel
from seesaw.plan.machine import Machine
from seesaw.plan.work import WorkCounter
from seesaw.scheduler import policies
from seesaw.scheduler.config import SchedulerConfig, TierConfig
from seesaw.scheduler.output import Phase
from seesaw.scheduler.scheduler import Scheduler
from seesaw.simulate.replica import PhaseModel, Recorder, ReplicaClock, Transition
from seesaw.simulate.scenario import Scenario


class Pools(NamedTuple):
    """Blocks of each replica."""

    num_blocks: int
    prefill_blocks: int
    tier_blocks: int


@dataclass(frozen=True)
class Setup:
    """All that is made from a scenario before its time begins."""

    scenario: Scenario

    @property
    def prefill(self) -> ParallelLayout:
        """Of one replica."""
        return self.scenario.layouts[0].replica

    @property
    def decode(self) -> ParallelLayout:
        return self.scenario.layouts[1].replica

    @property
    def num_replicas(self) -> int:
        return self.scenario.layouts[1].dp

    @cached_property
    def policy(self) -> str:
        prefill, decode = self.scenario.layouts
        return self.scenario.config.resolve_policy(prefill != decode)

    @cached_property
    def uses_tier(self) -> bool:
        return policies.uses_tier(self.policy)

    @cached_property
    def dtype(self) -> str:
        config = self.scenario.config
        own = self.scenario.spec.torch_dtype
        if config.dtype != "auto":
            return config.dtype
        return "bfloat16" if own == "float32" else own

    @property
    def element_bytes(self) -> int:
        return ELEMENT_BYTES[self.dtype]

    def devices_of(self, replica: int) -> Machine:
        """The devices of one replica, with their part of what all share of the host."""
        machine, size = self.scenario.machine, self.decode.num_ranks
        shared = machine.host_bytes_per_s
        return replace(
            machine,
            devices=machine.devices[replica * size : (replica + 1) * size],
            host_bytes_per_s=None if shared is None else shared / self.num_replicas,
        )

    def deaths_of(self, replica: int) -> list[float]:
        """When one of its ranks dies, in order."""
        size = self.decode.num_ranks
        deaths = self.scenario.faults.deaths
        return sorted(death.at_s for death in deaths if death.rank // size == replica)

    # -- scheduling --------------------------------------------------------------------------------

    @cached_property
    def pools(self) -> Pools:
        scenario = self.scenario
        config, spec = scenario.config, scenario.spec
        machine = scenario.machine.first(self.decode.num_ranks * self.num_replicas)
        budget = min(device.memory_bytes for device in machine.devices) * (
            config.gpu_memory_utilization or 0.9
        )
        fmt = PlainFormat(spec, self.element_bytes)
        layouts = list(dict.fromkeys([self.prefill, self.decode]))
        ranks = range(self.decode.num_ranks)
        held = [[rank_ranges(layout, spec, rank) for rank in ranks] for layout in layouts]
        room = budget - max(plan_arena(fmt, held, rank).nbytes for rank in ranks) - 0.6e9
        blocks = [
            max(
                PoolShape(
                    one.layers, one.kv_heads, 1, config.block_size, spec.head_dim,
                    self.element_bytes,
                ).nbytes
                for one in by_rank
            )
            for by_rank in held
        ]  # fmt: skip
        ring = tier = 0
        if self.uses_tier:
            ring = -(-(self.prefill.pp + 2) * config.max_num_batched_tokens // config.block_size)
            room -= ring * blocks[0]
            shape = TierShape.of(spec, 1, config.tier_block_size, self.element_bytes)
            tier = int(0.5 * machine.host_memory_bytes / self.num_replicas / shape.block_bytes)
        return Pools(
            scenario.num_blocks or int(room // blocks[-1]),
            (scenario.prefill_blocks or ring) if self.uses_tier else 0,
            (scenario.tier_blocks or tier) if self.uses_tier else 0,
        )

    def make_scheduler(self) -> Scheduler:
        """Of one replica; a policy has state, so each has one of its own."""
        scenario, pools = self.scenario, self.pools
        config = scenario.config
        tier = None
        if self.uses_tier:
            tier = TierConfig(
                prefill_blocks=pools.prefill_blocks,
                tier_blocks=pools.tier_blocks,
                tier_block_size=config.tier_block_size,
                prefill_stages=self.prefill.pp,
                decode_stages=self.decode.pp,
            )
        settings = SchedulerConfig(
            num_blocks=pools.num_blocks,
            block_size=config.block_size,
            num_layers=scenario.spec.num_hidden_layers,
            max_model_len=config.max_model_len or scenario.longest_request,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_steps_in_flight=scenario.max_steps_in_flight,
            enable_prefix_caching=False,
            num_stages=self.decode.pp,
            tier=tier,
            debug=scenario.debug,
        )
        return Scheduler(settings, policies.make(self.policy, config.policy_options))

    # -- time --------------------------------------------------------------------------------------

    @cached_property
    def counter(self) -> WorkCounter:
        return WorkCounter(self.scenario.spec)

    def make_clock(
        self,
        replica: int,
        recorder: Recorder | None,
        *,
        begin_s: float = 0.0,
        stop_s: float = math.inf,
    ) -> ReplicaClock:
        faults = self.scenario.faults
        return ReplicaClock(
            self._phases(replica),
            self.counter,
            transitions=self._transitions(replica),
            recorder=recorder,
            first_rank=replica * self.decode.num_ranks,
            pace=faults.pace if faults.slow else None,
            begin_s=begin_s,
            stop_s=stop_s,
        )

    def _phases(self, replica: int) -> dict[Phase, PhaseModel]:
        phases: dict[Phase, PhaseModel] = {"decode": self._phase(replica, self.decode)}
        if self.uses_tier:
            phases["prefill"] = self._phase(replica, self.prefill)
        return phases

    def _phase(self, replica: int, layout: ParallelLayout) -> PhaseModel:
        spec, block_size = self.scenario.spec, self.scenario.config.block_size
        store, load = [], []
        for rank in range(layout.num_ranks):
            held = rank_ranges(layout, spec, rank)
            shape = PoolShape(
                held.layers, held.kv_heads, 1, block_size, spec.head_dim, self.element_bytes
            )
            owned = owned_heads(layout, spec, rank).size
            store.append(transfer_bytes(shape, block_size, owned))
            load.append(transfer_bytes(shape, block_size))
        costs = CostModel(spec, self.devices_of(replica), layout, self.dtype)
        return PhaseModel(costs, store, load)

    @cached_property
    def changes(self) -> Mapping[Phase, ReshardPlan]:
        """What moves when a phase begins; empty where there is one layout."""
        if self.prefill == self.decode:
            return {}
        scenario = self.scenario
        config, spec = scenario.config, scenario.spec
        fmt = PlainFormat(spec, self.element_bytes)
        ranks = range(self.decode.num_ranks)
        held = [
            [rank_ranges(layout, spec, rank) for rank in ranks]
            for layout in (self.prefill, self.decode)
        ]
        arenas = [plan_arena(fmt, held, rank) for rank in ranks]
        peers = config.reshard_from == "peers" or (
            config.reshard_from == "auto" and scenario.machine.kind == "cuda"
        )
        ends: tuple[tuple[Phase, int, int], ...] = (("decode", 0, 1), ("prefill", 1, 0))
        return {
            phase: plan_reshard(
                fmt,
                held[old],
                held[new],
                arenas,
                old_index=old,
                new_index=new,
                reload=config.reload,
                peers=peers,
            )
            for phase, old, new in ends
        }

    def _transitions(self, replica: int) -> dict[Phase, Transition]:
        ranks = range(self.decode.num_ranks)
        if not self.uses_tier:
            return {}
        if self.scenario.transition_s is not None or not self.changes:
            fixed = Transition([self.scenario.transition_s or 0.0 for _ in ranks], is_joint=True)
            return {"prefill": fixed, "decode": fixed}
        costs = CostModel(self.scenario.spec, self.devices_of(replica), self.decode, self.dtype)
        return {
            phase: Transition(
                [costs.transition_s(rank, plan.bytes_by_source(rank)) for rank in ranks],
                is_joint=plan.bytes_by_source()["peer"] > 0,
            )
            for phase, plan in self.changes.items()
        }

    def weight_bytes(self, phase: Phase) -> Mapping[str, int]:
        """By source, over all ranks of a replica, of one change to `phase`."""
        plan = self.changes.get(phase)
        if plan is None:
            return {}
        return {str(source): nbytes for source, nbytes in plan.bytes_by_source().items()}
