"""When the ranks of one replica would have done what a step asks: a clock in place of workers.

Every rank runs steps in their order, as the engine's do; it has a lane for compute and one each for
stores and loads, and no lane does two things at once. Owns time; knows no policy and no request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from seesaw.plan.cost_model import CostModel
from seesaw.plan.work import WorkCounter
from seesaw.scheduler.output import ModelOutput, Phase, SchedulerOutput, TransferDone

Event = tuple[float, ModelOutput | TransferDone]
"""When the driver hears of what."""


class Recorder(Protocol):
    """Told of everything that occupies a lane."""

    def span(self, rank: int, lane: str, name: str, start_s: float, end_s: float) -> None: ...


@dataclass(frozen=True, slots=True)
class PhaseModel:
    """One layout of the replica. Per rank: bytes that a stored or loaded device block moves."""

    costs: CostModel
    store_block_bytes: Sequence[int]
    load_block_bytes: Sequence[int]


class ReplicaClock:
    """`transition_s[phase][rank]`: until a rank has the weights of the phase that begins."""

    def __init__(
        self,
        phases: Mapping[Phase, PhaseModel],
        counter: WorkCounter,
        block_size: int,
        *,
        transition_s: Mapping[Phase, Sequence[float]] | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self._phases = phases
        self._counter = counter
        self._block_size = block_size
        self._transition_s = transition_s or {}
        self._recorder = recorder
        num_ranks = next(iter(phases.values())).costs.layout.num_ranks
        self.compute_free_s = [0.0] * num_ranks
        self.store_free_s = [0.0] * num_ranks
        self.load_free_s = [0.0] * num_ranks
        self.busy_s = [0.0] * num_ranks

    def submit(self, step: SchedulerOutput, now_s: float) -> list[Event]:
        """All that comes of a step handed over at `now_s`. Steps come in their order."""
        phase = self._phases[step.phase]
        free = self.compute_free_s
        ranks = range(len(free))
        for rank in ranks:
            free[rank] = max(free[rank], now_s)
        reshard_s = 0.0
        if step.reshard:
            reshard_s = self._reshard(step.phase)
        events: list[Event] = []
        for load in step.loads:
            blocks = len(load.blocks)
            events.append(
                self._transfer("load", load.transfer_id, blocks, phase.costs,
                               self._phases["decode"].load_block_bytes, self.load_free_s)
            )  # fmt: skip
        busy_s, tokens = self._compute(step, phase)
        for store in step.stores:
            events.append(
                self._transfer("store", store.transfer_id, len(store.blocks), phase.costs,
                               self._phases[store.phase].store_block_bytes, self.store_free_s)
            )  # fmt: skip
        done = ModelOutput(step.step_id, tokens, busy_s=busy_s, reshard_s=reshard_s)
        events.append((max(free), done))
        return events

    def _reshard(self, phase: Phase) -> float:
        free, times = self.compute_free_s, self._transition_s.get(phase, ())
        for rank, seconds in enumerate(times):
            self._note(rank, "compute", f"to {phase}", free[rank], seconds)
            free[rank] += seconds
        return max(times, default=0.0)

    def _compute(self, step: SchedulerOutput, phase: PhaseModel) -> tuple[float, list[int]]:
        rows = [row for lane in step.lanes for row in lane.rows]
        if not rows:
            return 0.0, []
        work = self._counter.count([(row[2], row[1] + row[2], row[5]) for row in rows])
        costs, free = phase.costs, self.compute_free_s
        tp = costs.layout.tp
        arrival_s = busy_s = 0.0
        send_s = costs.send_s(work.num_tokens) if costs.layout.pp > 1 else 0.0
        for stage, seconds in enumerate(costs.stages_s(work)):
            ranks = range(stage * tp, (stage + 1) * tp)
            begin_s = max(arrival_s, max(free[rank] for rank in ranks))
            for rank in ranks:
                self._note(rank, "compute", f"{step.phase} {step.step_id}", begin_s, seconds)
                free[rank] = begin_s + seconds
                self.busy_s[rank] += seconds
            busy_s = max(busy_s, seconds)
            arrival_s = begin_s + seconds + send_s
        return busy_s, [0] * work.num_sampled

    def _transfer(
        self, kind: str, transfer_id: int, blocks: int, costs: CostModel,
        block_bytes: Sequence[int], lanes: list[float],
    ) -> Event:  # fmt: skip
        end_s = seconds = 0.0
        rate = costs.load_bytes_per_s if kind == "load" else costs.store_bytes_per_s
        for rank, nbytes in enumerate(block_bytes):
            begin_s = max(lanes[rank], self.compute_free_s[rank])
            taken_s = blocks * nbytes / rate(rank)
            self._note(rank, kind, f"{kind} {transfer_id}", begin_s, taken_s)
            lanes[rank] = begin_s + taken_s
            end_s, seconds = max(end_s, lanes[rank]), max(seconds, taken_s)
        return end_s, TransferDone(transfer_id, blocks * sum(block_bytes), seconds)

    def _note(self, rank: int, lane: str, name: str, start_s: float, seconds: float) -> None:
        if self._recorder is not None and seconds > 0:
            self._recorder.span(rank, lane, name, start_s, start_s + seconds)
