"""When the ranks of one replica would have done what a step asks: a clock in place of workers.

Every rank runs steps in their order, as the engine's do; it has a lane for compute and one each for
stores, loads, weights and relays, and no lane does two things at once. Owns time; knows no policy
and no request.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from seesaw.layout.kv import STORE_LAYERS
from seesaw.plan.cost_model import CostModel
from seesaw.plan.transition import Landing, run_while_landing
from seesaw.plan.work import Work, WorkCounter
from seesaw.scheduler.output import ModelOutput, Phase, SchedulerOutput, Store, TransferDone
from seesaw.scheduler.step_times import StepTimer, StepTimes

NO_STEP = StepTimes(Work(), [], [])

MOST_COPIES = 4096
"""Whose ends are kept before those that are over are forgotten."""


class Recorder(Protocol):
    """Told of everything that occupies a lane ("compute", "store", "load", "weights", "peer") of a
    rank."""

    def span(self, rank: int, lane: str, name: str, start_s: float, end_s: float) -> None: ...


class Pace(Protocol):
    """How many times longer than it should a rank takes to compute, from `at_s` on."""

    def __call__(self, rank: int, at_s: float) -> float: ...


@dataclass(frozen=True, slots=True)
class PhaseModel:
    """One layout of the replica. Per rank: its layers, and bytes that a stored or loaded device
    block moves."""

    costs: CostModel
    num_layers: Sequence[int]
    store_block_bytes: Sequence[int]
    load_block_bytes: Sequence[int]


@dataclass(frozen=True, slots=True)
class RelayModel:
    """A block that goes from the ranks' prefill pools to their decode pools: seconds of each rank,
    and bytes over all."""

    block_s: Sequence[float]
    block_bytes: int
    block_peer_bytes: int


@dataclass(frozen=True, slots=True)
class Transition:
    """A change of layout: of each rank, when it has the weights of the phase that begins.
    `is_joint`: ranks take weights from each other, so they begin when all have come this far.
    `is_beside`: while they compute, else a rank does nothing before it has all."""

    landings: Sequence[Landing]
    is_joint: bool = False
    is_beside: bool = False


class Ran(NamedTuple):
    """What came of a step, and when: its result at `done_s`, and each store and load with the time
    at which it is complete on all ranks. `work` is what its rows asked of every layer; before it
    stages stood still for `bubble_s`, summed over them, though steps were under way."""

    done_s: float
    output: ModelOutput
    transfers: list[tuple[float, TransferDone]]
    work: Work
    bubble_s: float = 0.0


class ReplicaClock:
    """`first_rank` is the number of its first rank among those of all replicas, by which `recorder`
    and `pace` know it. It starts at `begin_s`; what lies beyond `stop_s` is not done any more.
    Without a `pace` every rank keeps time. `overlap`: steps' stores begin while they compute.
    """

    def __init__(
        self,
        phases: Mapping[Phase, PhaseModel],
        counter: WorkCounter,
        *,
        transitions: Mapping[Phase, Transition] | None = None,
        relay: RelayModel | None = None,
        recorder: Recorder | None = None,
        first_rank: int = 0,
        pace: Pace | None = None,
        overlap: bool = True,
        begin_s: float = 0.0,
        stop_s: float = math.inf,
    ) -> None:
        self._phases = phases
        self._timers = {name: StepTimer(phase.costs, counter) for name, phase in phases.items()}
        self._transitions = transitions or {}
        self._relay = relay
        self._recorder = recorder
        self._first_rank = first_rank
        self._pace = pace
        self._overlap = overlap
        self._stop_s = stop_s
        num_ranks = next(iter(phases.values())).costs.layout.num_ranks
        self.compute_free_s = [begin_s] * num_ranks
        self.store_free_s = [begin_s] * num_ranks
        self.load_free_s = [begin_s] * num_ranks
        self.weights_free_s = [begin_s] * num_ranks
        self.peer_free_s = [begin_s] * num_ranks
        self._landing: dict[int, tuple[float, Landing]] = {}
        """Of ranks that have computed nothing since their weights began to come, and when."""
        self.busy_s = [0.0] * num_ranks
        """Seconds that each rank computed; copies and waiting for weights do not count."""
        self._computed_s = [begin_s] * num_ranks
        """When each rank was done with the last rows that it had."""
        self._through_s = begin_s
        """When the last step is done: from then on nothing is under way."""
        self._copied_s: dict[int, list[float]] = {}
        """When each rank is done with its part of a transfer, as long as a step may ask."""

    def submit(self, step: SchedulerOutput, now_s: float) -> Ran:
        """All that comes of a step handed over at `now_s`. Steps come in their order."""
        phase, free = self._phases[step.phase], self.compute_free_s
        empty_s = max(0.0, now_s - self._through_s)
        for rank, free_s in enumerate(free):
            if free_s < now_s:
                free[rank] = now_s
        reshard_s = self._reshard(step.phase) if step.reshard else 0.0
        transfers = []
        for load in step.loads:
            nbytes = self._phases["decode"].load_block_bytes
            end = self._transfer(
                "load", load.transfer_id, len(load.blocks), nbytes, phase.costs, load.after
            )
            transfers.append(end)
        for transfer_id in step.awaits:
            for rank, end_s in enumerate(self._copied_s.get(transfer_id, ())):
                free[rank] = max(free[rank], end_s)
        begun_s = free[:]
        times, busy_s, held_s = self._compute(step, phase, begun_s)
        done_s = self._through_s = max(free)
        bubble_s = self._bubbles(begun_s, empty_s, phase) if times.work.num_tokens else 0.0
        if step.stores and self._overlap:
            transfers += self._store_beside(step, phase, begun_s)
        else:
            for store in step.stores:
                nbytes = self._phases[store.phase].store_block_bytes
                blocks = len(store.blocks)
                end = self._transfer("store", store.transfer_id, blocks, nbytes, phase.costs)
                transfers.append(end)
        for relay in step.relays:
            transfers.append(self._exchange(relay.transfer_id, len(relay.blocks)))
        tokens = [0] * times.work.num_sampled
        if len(self._copied_s) > MOST_COPIES:
            self._copied_s = {
                number: ends for number, ends in self._copied_s.items() if max(ends) > now_s
            }
        reshard_s += held_s
        output = ModelOutput(
            step.step_id, tokens, busy_s=busy_s, reshard_s=reshard_s,
            expert_loads=times.expert_loads,
        )  # fmt: skip
        return Ran(done_s, output, transfers, times.work, bubble_s)

    def _bubbles(self, begun_s: Sequence[float], empty_s: float, phase: PhaseModel) -> float:
        """For how long stages stood still before rows that they have computed by now, less the
        `empty_s` in which nothing was under way."""
        before, self._computed_s = self._computed_s, self.compute_free_s[:]
        first_ranks = range(0, len(before), phase.costs.layout.tp)
        return sum(max(0.0, begun_s[rank] - before[rank] - empty_s) for rank in first_ranks)

    def _reshard(self, phase: Phase) -> float:
        """Seconds for which the slowest rank does nothing else."""
        change, free = self._transitions[phase], self.compute_free_s
        if change.is_beside:
            # A change that is still under way is waited for.
            free[:] = map(max, free, self.weights_free_s)
        first_s = max(free)
        lane = "weights" if change.is_beside else "compute"
        for rank, landing in enumerate(change.landings):
            begin_s = first_s if change.is_joint else free[rank]
            self._note(rank, lane, f"to {phase}", begin_s, landing.last_s)
            if not change.is_beside:
                free[rank] = begin_s + landing.last_s
            elif landing.last_s > 0:
                landed = landing.after(begin_s)
                self._landing[rank] = begin_s, landed
                self.weights_free_s[rank] = landed.last_s
        return 0.0 if change.is_beside else max(one.last_s for one in change.landings)

    def _compute(
        self, step: SchedulerOutput, phase: PhaseModel, begun_s: list[float]
    ) -> tuple[StepTimes, float, float]:
        """What the step takes, the seconds of the slowest stage, and for how long one waited for
        weights. `begun_s` becomes when each rank began."""
        if not step.rows:
            return NO_STEP, 0.0, 0.0
        times = self._timers[step.phase].times(step.rows)
        costs, free = phase.costs, self.compute_free_s
        tp = costs.layout.tp
        arrival_s = busy_s = held_s = 0.0
        for stage, seconds in enumerate(times.stages_s):
            first = stage * tp
            ranks = range(first, first + tp)
            begin_s = max(arrival_s, *free[first : first + tp])
            if self._pace is not None:
                seconds *= max(self._pace(self._first_rank + rank, begin_s) for rank in ranks)
            end_s = begin_s + seconds
            computing_s = begin_s
            if self._landing:
                landing = [self._landing.pop(rank) for rank in ranks if rank in self._landing]
                # Waiting for other ranks to begin the change is not waiting for weights.
                could_s = max(begin_s, *(began_s for began_s, _ in landing), 0.0) + seconds
                begin_s, end_s = run_while_landing([one for _, one in landing], begin_s, seconds)
                held_s = max(held_s, end_s - could_s)
                computing_s = end_s - seconds
            for rank in ranks:
                begun_s[rank], free[rank] = begin_s, end_s
                self.busy_s[rank] += max(0.0, min(end_s, self._stop_s) - computing_s)
            if self._recorder is not None:
                name = f"{step.phase} {step.step_id}"
                for rank in ranks:
                    self._note(rank, "compute", name, begin_s, end_s - begin_s)
            busy_s = max(busy_s, seconds)
            if stage < len(times.handed_over):
                arrival_s = end_s + costs.send_s(times.handed_over[stage])
        return times, busy_s, held_s

    def _store_beside(
        self, step: SchedulerOutput, phase: PhaseModel, begun_s: Sequence[float]
    ) -> list[tuple[float, TransferDone]]:
        """What the step's rows complete is stored by groups of layers as these are computed, at an
        even pace; what no row adds to, from when the rank comes to the step."""
        running = {row.request_id for row in step.rows}
        done: list[Store] = [one for one in step.stores if one.request_id not in running]
        to_come = [one for one in step.stores if one.request_id in running]
        for store in step.stores:
            self._copied_s[store.transfer_id] = [0.0] * len(begun_s)
        longest_s = dict.fromkeys((store.transfer_id for store in step.stores), 0.0)
        for rank, num_layers in enumerate(phase.num_layers):
            rate, ready_s = phase.costs.store_bytes_per_s(rank), begun_s[rank]
            seconds = {
                store.transfer_id: len(store.blocks)
                * self._phases[store.phase].store_block_bytes[rank]
                / rate
                for store in step.stores
            }
            for store in done:
                self._store_part(rank, store, ready_s, seconds[store.transfer_id])
            layer_s = (self.compute_free_s[rank] - ready_s) / num_layers
            for first in range(0, num_layers, STORE_LAYERS):
                size = min(STORE_LAYERS, num_layers - first)
                ready_s += size * layer_s
                for store in to_come:
                    part_s = seconds[store.transfer_id] * size / num_layers
                    self._store_part(rank, store, ready_s, part_s)
            for number, taken_s in seconds.items():
                longest_s[number] = max(longest_s[number], taken_s)
        return [
            (
                max(self._copied_s[store.transfer_id]),
                TransferDone(
                    store.transfer_id,
                    len(store.blocks) * sum(self._phases[store.phase].store_block_bytes),
                    longest_s[store.transfer_id],
                ),
            )
            for store in step.stores
        ]

    def _store_part(self, rank: int, store: Store, ready_s: float, seconds: float) -> None:
        """The next of what `rank` copies, which there is from `ready_s` on."""
        begin_s = max(self.store_free_s[rank], ready_s)
        self._note(rank, "store", f"store {store.transfer_id}", begin_s, seconds)
        self.store_free_s[rank] = end_s = begin_s + seconds
        self._copied_s[store.transfer_id][rank] = end_s

    def _transfer(
        self, kind: str, transfer_id: int, blocks: int, block_bytes: Sequence[int],
        costs: CostModel, after: Sequence[int] = (),
    ) -> tuple[float, TransferDone]:  # fmt: skip
        """From when each rank comes to it, its lane is free, and its part of the transfers `after`
        is done."""
        ends = self._copied_s[transfer_id] = []
        end_s = seconds = 0.0
        is_load = kind == "load"
        rate = costs.load_bytes_per_s if is_load else costs.store_bytes_per_s
        lanes = self.load_free_s if is_load else self.store_free_s
        for rank, nbytes in enumerate(block_bytes):
            begin_s = max(lanes[rank], self.compute_free_s[rank])
            for one in after:
                if one in self._copied_s:
                    begin_s = max(begin_s, self._copied_s[one][rank])
            taken_s = blocks * nbytes / rate(rank)
            self._note(rank, kind, f"{kind} {transfer_id}", begin_s, taken_s)
            lanes[rank] = begin_s + taken_s
            ends.append(lanes[rank])
            end_s, seconds = max(end_s, lanes[rank]), max(seconds, taken_s)
        return end_s, TransferDone(transfer_id, blocks * sum(block_bytes), seconds)

    def _exchange(self, transfer_id: int, blocks: int) -> tuple[float, TransferDone]:
        """Ranks begin together, when all have come to it."""
        assert self._relay is not None, "a relay where there is none"
        lanes, block_s = self.peer_free_s, self._relay.block_s
        begin_s = max(*lanes, *self.compute_free_s)
        for rank, seconds in enumerate(block_s):
            self._note(rank, "peer", f"relay {transfer_id}", begin_s, blocks * seconds)
            lanes[rank] = begin_s + blocks * seconds
        return max(lanes), TransferDone(
            transfer_id,
            blocks * self._relay.block_bytes,
            blocks * max(block_s),
            blocks * self._relay.block_peer_bytes,
        )

    def _note(self, rank: int, lane: str, name: str, start_s: float, seconds: float) -> None:
        end_s = min(start_s + seconds, self._stop_s)
        if self._recorder is not None and end_s > start_s:
            self._recorder.span(self._first_rank + rank, lane, name, start_s, end_s)
