"""From a scenario to what runs it: memory, schedulers, and the clocks that stand for ranks.

The memory plan, the schedulers and the bytes that move are those of the engine; only time comes
from the cost model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from seesaw.config import EngineConfig
from seesaw.layout.kv import PoolShape, owned_heads, transfer_bytes
from seesaw.layout.parallel import ParallelLayout
from seesaw.layout.ranges import rank_ranges
from seesaw.layout.relay import relay_pieces, relay_takes
from seesaw.plan.choice import LayoutChoice
from seesaw.plan.cost_model import ELEMENT_BYTES, CostModel
from seesaw.plan.demand import Demand
from seesaw.plan.device_memory import Space
from seesaw.plan.lane_costs import LaneCosts, core_units, sm_units
from seesaw.plan.machine import Machine
from seesaw.plan.memory import MemoryPlan, plan_memory
from seesaw.plan.rotation import Rotation, check_wanted, plan_rotation
from seesaw.plan.step_times import Steps
from seesaw.plan.transition import Landing, Moved, landings, planned_bytes
from seesaw.plan.ways import check_dtype
from seesaw.plan.weight_bytes import dtype_of
from seesaw.plan.work import WorkCounter
from seesaw.plan.workload import Lengths
from seesaw.scheduler import policies
from seesaw.scheduler.build import make_schedulers
from seesaw.scheduler.counters import StepCounter
from seesaw.scheduler.output import Phase
from seesaw.scheduler.scheduler import Scheduler
from seesaw.simulate.lanes import LaneClock
from seesaw.simulate.replica import PhaseModel, Recorder, RelayModel, ReplicaClock, Transition
from seesaw.simulate.scenario import Scenario

CPU_CORES = 2
"""Of a CPU device, whose figures do not say how many it is: lanes have half of it each."""

Clock = ReplicaClock | LaneClock


@dataclass(frozen=True)
class Setup:
    """All that is made from a scenario before its time begins."""

    scenario: Scenario

    @cached_property
    def layouts(self) -> LayoutChoice:
        prefill, decode = self.scenario.layouts
        return LayoutChoice(prefill, decode, "of the scenario", times=self.scenario.times)

    @property
    def prefill(self) -> ParallelLayout:
        """Of one replica."""
        return self.layouts.prefill.replica

    @property
    def decode(self) -> ParallelLayout:
        """Of one replica."""
        return self.layouts.decode.replica

    @property
    def num_replicas(self) -> int:
        return self.layouts.dp

    @cached_property
    def policy(self) -> str:
        prefill, decode = self.scenario.layouts
        return self.scenario.config.resolve_policy(prefill != decode)

    @cached_property
    def uses_tier(self) -> bool:
        return policies.uses_tier(self.policy)

    @cached_property
    def num_lanes(self) -> int:
        return policies.num_lanes(self.policy)

    @cached_property
    def dtype(self) -> str:
        dtype = dtype_of(self.scenario.config, self.scenario.spec)
        check_dtype(self.machine, dtype)
        return dtype

    @property
    def element_bytes(self) -> int:
        return ELEMENT_BYTES[self.dtype]

    def deaths_of(self, replica: int) -> list[float]:
        """When one of its ranks dies, in order."""
        size = self.decode.num_ranks
        deaths = self.scenario.faults.deaths
        return sorted(death.at_s for death in deaths if death.rank // size == replica)

    # -- scheduling --------------------------------------------------------------------------------

    @cached_property
    def machine(self) -> Machine:
        """The devices that the layouts take."""
        return self.scenario.machine.first(self.layouts.num_ranks)

    @cached_property
    def config(self) -> EngineConfig:
        """The scenario's, with what follows from its requests."""
        given = self.scenario.config
        longest = given.max_model_len or self.scenario.longest_request
        return replace(given, max_model_len=longest, enable_prefix_caching=False)

    @cached_property
    def memory(self) -> MemoryPlan:
        scenario = self.scenario
        plan = plan_memory(
            self.config, scenario.spec, self.element_bytes, Space.of(self.machine), self.layouts,
            self.uses_tier, kv_element_bytes=scenario.kv_element_bytes, native=scenario.native,
            splits_layers=policies.splits_layers(self.policy),
            num_lanes=self.num_lanes,
        )  # fmt: skip
        plan = replace(plan, num_blocks=scenario.num_blocks or plan.num_blocks)
        if not self.uses_tier:
            return plan
        return replace(
            plan,
            prefill_blocks=scenario.prefill_blocks or plan.prefill_blocks,
            tier_blocks=scenario.tier_blocks or plan.tier_blocks,
        )

    @cached_property
    def rotation(self) -> Rotation | None:
        """Of each replica, for what its requests are on average."""
        config = self.config
        check_wanted(config.running_tier, self.scenario.spec, self.decode, has_tier=self.uses_tier)
        if not self.uses_tier:
            return None
        requests = self.scenario.requests
        lengths = [Lengths(prompt, answer) for _, prompt, answer in requests]
        demand = Demand.of(lengths, math.ceil(len(lengths) / self.num_replicas))
        chunk = self.config.step_tokens
        steps = Steps(self._costs(0, self.decode), self.counter, demand, chunk)
        return plan_rotation(config.running_tier, steps, self.memory, demand, config.max_num_seqs)

    def make_schedulers(self) -> list[Scheduler]:
        """One for each replica."""
        scenario = self.scenario
        num_layers = scenario.spec.num_hidden_layers
        schedulers = make_schedulers(
            self.config, self.memory, self.layouts, num_layers, self.policy,
            max_steps_in_flight=scenario.max_steps_in_flight, debug=scenario.debug,
            rotation_tokens=0 if self.rotation is None else self.rotation.tokens,
            costs=lambda replica: self._costs(replica, self.decode),
            share_units=self._share_units,
            lane_costs=self._lane_costs(0) if self.num_lanes > 1 else None,
        )  # fmt: skip
        if scenario.tile is not None:
            for scheduler in schedulers:
                scheduler.counter = StepCounter(scenario.tile)
        return schedulers

    @property
    def _share_units(self) -> int:
        """Of each device; lanes have whole numbers of them."""
        if self.num_lanes == 1:
            return 1
        device = self.machine.devices[0]
        return core_units(CPU_CORES) if device.num_sms is None else sm_units(device.num_sms)

    def _lane_costs(self, replica: int) -> LaneCosts:
        return LaneCosts(
            self.scenario.spec, self.machine.part(replica, 1), self.dtype, self._share_units,
            kv_bytes=self.scenario.kv_element_bytes,
        )  # fmt: skip

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
    ) -> Clock:
        faults = self.scenario.faults
        if self.num_lanes > 1:
            return LaneClock(
                self._lane_costs(replica), recorder=recorder, rank=replica,
                pace=faults.pace if faults.slow else None, begin_s=begin_s, stop_s=stop_s,
            )  # fmt: skip
        return ReplicaClock(
            self._phases(replica),
            self.counter,
            transitions=self._transitions(replica),
            relay=self._relay(replica) if self.memory.relays else None,
            recorder=recorder,
            first_rank=replica * self.decode.num_ranks,
            pace=faults.pace if faults.slow else None,
            overlap=self.config.overlap,
            begin_s=begin_s,
            stop_s=stop_s,
        )

    def _phases(self, replica: int) -> dict[Phase, PhaseModel]:
        phases: dict[Phase, PhaseModel] = {"decode": self._phase(replica, self.decode)}
        if self.uses_tier:
            phases["prefill"] = self._phase(replica, self.prefill)
        return phases

    def _phase(self, replica: int, layout: ParallelLayout) -> PhaseModel:
        spec, block_size = self.scenario.spec, self.config.block_size
        element_bytes = self.scenario.kv_element_bytes or self.element_bytes
        layers, store, load = [], [], []
        for rank in range(layout.num_ranks):
            held = rank_ranges(layout, spec, rank)
            shape = PoolShape(
                held.layers, held.kv_heads, 1, block_size, spec.head_dim, element_bytes
            )
            owned = owned_heads(layout, spec, rank).size
            layers.append(held.layers.size)
            store.append(transfer_bytes(shape, block_size, owned))
            load.append(transfer_bytes(shape, block_size))
        return PhaseModel(self._costs(replica, layout), layers, store, load)

    def _relay(self, replica: int) -> RelayModel:
        spec, element_bytes = (
            self.scenario.spec,
            self.scenario.kv_element_bytes or self.element_bytes,
        )
        prefill, decode = self.prefill.replica, self.decode.replica
        tile_bytes = self.config.block_size * spec.head_dim * element_bytes
        takes = relay_takes(relay_pieces(prefill, decode, spec), tile_bytes, decode.num_ranks)
        costs, ranks = self._costs(replica, decode), range(decode.num_ranks)
        return RelayModel(
            [costs.transition_s(rank, takes[rank]) for rank in ranks],
            sum(sum(one.values()) for one in takes),
            sum(one["peer"] for one in takes),
        )

    def _costs(self, replica: int, layout: ParallelLayout) -> CostModel:
        size = layout.num_ranks
        return CostModel(
            self.scenario.spec, self.machine.part(replica * size, size), layout, self.dtype,
            kv_bytes=self.scenario.kv_element_bytes,
        )  # fmt: skip

    @cached_property
    def moved(self) -> Mapping[Phase, Moved]:
        """Bytes that each rank takes, by source, when a phase begins. Empty with one layout."""
        if self.prefill == self.decode:
            return {}
        to_decode, to_prefill = planned_bytes(
            self.scenario.spec, self.element_bytes, self.prefill, self.decode, self.config,
            self.machine.kind, self.scenario.native,
        )  # fmt: skip
        return {"decode": to_decode, "prefill": to_prefill}

    def _transitions(self, replica: int) -> dict[Phase, Transition]:
        if not self.uses_tier:
            return {}
        given_s, config = self.scenario.transition_s, self.config
        if given_s is not None or not self.moved:
            landing = Landing(given_s or 0.0, given_s or 0.0, 1.0)
            fixed = Transition([landing] * self.decode.num_ranks, is_joint=True)
            return {"prefill": fixed, "decode": fixed}
        costs = self._costs(replica, self.decode)
        sides = {"prefill": self.prefill, "decode": self.decode}
        found: dict[Phase, Transition] = {}
        for phase, moved in self.moved.items():
            old = sides["prefill" if phase == "decode" else "decode"]
            found[phase] = Transition(
                landings(costs, moved, old, sides[phase], config),
                is_joint=any(one.get("peer") for one in moved),
                is_beside=config.overlap,
            )
        return found

    def weight_bytes(self, phase: Phase) -> Mapping[str, int]:
        """By source, over all ranks of a replica, of one change to `phase`."""
        total: dict[str, int] = {}
        for one in self.moved.get(phase, ()):
            for source, nbytes in one.items():
                total[source] = total.get(source, 0) + nbytes
        return total
