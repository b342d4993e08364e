"""When the ranks of one replica would have done what a step asks: a clock in place of workers.

Every rank runs steps in their order, as the engine's do; it has a lane for compute and one each for
stores, loads and relays, and no lane does two things at once. Owns time; knows no policy and no
request.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, Protocol

from seesaw.plan.cost_model import CostModel
from seesaw.plan.work import Work, WorkCounter
from seesaw.scheduler.output import ModelOutput, Phase, SchedulerOutput, TransferDone

NO_WORK = Work()

MOST_COPIES = 4096
"""Whose ends are kept before those that are over are forgotten."""


class Recorder(Protocol):
    """Told of everything that occupies a lane ("compute", "store", "load", "peer") of a rank."""

    def span(self, rank: int, lane: str, name: str, start_s: float, end_s: float) -> None: ...


class Pace(Protocol):
    """How many times longer than it should a rank takes to compute, from `at_s` on."""

    def __call__(self, rank: int, at_s: float) -> float: ...


@dataclass(frozen=True, slots=True)
class PhaseModel:
    """One layout of the replica. Per rank: bytes that a stored or loaded device block moves."""

    costs: CostModel
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
    """A change of layout: seconds of each rank, until it has the weights of the phase that begins.
    `is_joint`: ranks take weights from each other, so they begin when all have come this far."""

    seconds: Sequence[float]
    is_joint: bool = False


class Ran(NamedTuple):
    """What came of a step, and when: its result at `done_s`, and each store and load with the time
    at which it is complete on all ranks. `work` is what its rows asked of every layer."""

    done_s: float
    output: ModelOutput
    transfers: list[tuple[float, TransferDone]]
    work: Work


class ReplicaClock:
    """`first_rank` is the number of its first rank among those of all replicas, by which `recorder`
    and `pace` know it. It starts at `begin_s`; what lies beyond `stop_s` is not done any more.
    Without a `pace` every rank keeps time.
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
        begin_s: float = 0.0,
        stop_s: float = math.inf,
    ) -> None:
        self._phases = phases
        self._counter = counter
        self._transitions = transitions or {}
        self._relay = relay
        self._recorder = recorder
        self._first_rank = first_rank
        self._pace = pace
        self._stop_s = stop_s
        num_ranks = next(iter(phases.values())).costs.layout.num_ranks
        self.compute_free_s = [begin_s] * num_ranks
        self.store_free_s = [begin_s] * num_ranks
        self.load_free_s = [begin_s] * num_ranks
        self.peer_free_s = [begin_s] * num_ranks
        self.busy_s = [0.0] * num_ranks
        """Seconds that each rank computed; changes of layout and copies do not count."""
        self._copied_s: dict[int, list[float]] = {}
        """When each rank is done with its part of a transfer, as long as a step may ask."""

    def submit(self, step: SchedulerOutput, now_s: float) -> Ran:
        """All that comes of a step handed over at `now_s`. Steps come in their order."""
        phase, free = self._phases[step.phase], self.compute_free_s
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
        work, busy_s = self._compute(step, phase)
        done_s = max(free)
        for store in step.stores:
            nbytes = self._phases[store.phase].store_block_bytes
            end = self._transfer("store", store.transfer_id, len(store.blocks), nbytes, phase.costs)
            transfers.append(end)
        for relay in step.relays:
            transfers.append(self._exchange(relay.transfer_id, len(relay.blocks)))
        tokens = [0] * work.num_sampled
        if len(self._copied_s) > MOST_COPIES:
            self._copied_s = {
                number: ends for number, ends in self._copied_s.items() if max(ends) > now_s
            }
        output = ModelOutput(step.step_id, tokens, busy_s=busy_s, reshard_s=reshard_s)
        return Ran(done_s, output, transfers, work)

    def _reshard(self, phase: Phase) -> float:
        """Seconds of the slowest rank."""
        change, free = self._transitions[phase], self.compute_free_s
        first_s = max(free)
        for rank, seconds in enumerate(change.seconds):
            begin_s = first_s if change.is_joint else free[rank]
            self._note(rank, "compute", f"to {phase}", begin_s, seconds)
            free[rank] = begin_s + seconds
        return max(change.seconds)

    def _compute(self, step: SchedulerOutput, phase: PhaseModel) -> tuple[Work, float]:
        """The step's work, and the seconds of the slowest stage."""
        lanes = step.lanes
        rows = lanes[0].rows if len(lanes) == 1 else list(chain(*(lane.rows for lane in lanes)))
        if not rows:
            return NO_WORK, 0.0
        _, starts, counts, _, _, samples = zip(*rows, strict=True)
        work = self._counter.count_columns(counts, starts, sum(samples))
        costs, free = phase.costs, self.compute_free_s
        tp = costs.layout.tp
        arrival_s = busy_s = 0.0
        send_s = costs.send_s(work.num_tokens) if costs.layout.pp > 1 else 0.0
        for stage, seconds in enumerate(costs.stages_s(work)):
            first = stage * tp
            ranks = range(first, first + tp)
            begin_s = max(arrival_s, *free[first : first + tp])
            if self._pace is not None:
                seconds *= max(self._pace(self._first_rank + rank, begin_s) for rank in ranks)
            end_s = begin_s + seconds
            for rank in ranks:
                free[rank] = end_s
                self.busy_s[rank] += max(0.0, min(end_s, self._stop_s) - begin_s)
            if self._recorder is not None:
                for rank in ranks:
                    self._note(rank, "compute", f"{step.phase} {step.step_id}", begin_s, seconds)
            busy_s = max(busy_s, seconds)
            arrival_s = end_s + send_s
        return work, busy_s

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
