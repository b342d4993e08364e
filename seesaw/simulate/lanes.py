"""When a device with two lanes would have done what steps ask: as `replica.py`, for a replica of
one rank whose lanes run beside each other on shares of it.

A step is as fast as its share, and what the other lane runs when it begins, allow
(`plan/lane_costs.py`), to its end. Where the other lane still has units that the step was given,
both have half of these: each lane changes its share at a step of its own.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from seesaw.plan.lane_costs import Beside, LaneCosts
from seesaw.plan.work import Work
from seesaw.scheduler.output import ModelOutput, SchedulerOutput
from seesaw.simulate.replica import Pace, Ran, Recorder

LANES = ("compute", "compute 2")


@dataclass(frozen=True, slots=True)
class _Running:
    """A step that was handed over."""

    begin_s: float
    end_s: float
    work: Work
    share: float


class LaneClock:
    """As `ReplicaClock`, whose arguments it takes. `busy_s`: of its only rank, steps by their
    share of it."""

    def __init__(
        self,
        costs: LaneCosts,
        *,
        recorder: Recorder | None = None,
        rank: int = 0,
        pace: Pace | None = None,
        begin_s: float = 0.0,
        stop_s: float = math.inf,
    ) -> None:
        self._costs = costs
        self._recorder = recorder
        self._rank = rank
        self._pace = pace
        self._stop_s = stop_s
        self._free_s = [begin_s] * len(LANES)
        self._steps: list[deque[_Running]] = [deque() for _ in LANES]
        """That were not over when the latest one was handed over."""
        self.busy_s = [0.0]

    def submit(self, step: SchedulerOutput, now_s: float) -> Ran:
        """All that comes of a step handed over at `now_s`. Those of a lane come in their order."""
        for steps in self._steps:
            while steps and steps[0].end_s <= now_s:
                steps.popleft()
        lane, (batch,) = step.lane, step.batches
        work = self._costs.work(
            [(row.token_start, row.num_tokens, row.samples) for row in batch.rows]
        )
        begin_s = max(now_s, self._free_s[lane])
        other = self._running(1 - lane, begin_s)
        seconds = self._seconds(work, batch.compute_share, other)
        if self._pace is not None:
            seconds *= self._pace(self._rank, begin_s)
        end_s = self._free_s[lane] = begin_s + seconds
        self._steps[lane].append(_Running(begin_s, end_s, work, batch.compute_share))
        done_s = min(end_s, self._stop_s)
        self.busy_s[0] += batch.compute_share * max(0.0, done_s - begin_s)
        if self._recorder is not None and done_s > begin_s:
            name = f"{step.phase} {step.step_id}"
            self._recorder.span(self._rank, LANES[lane], name, begin_s, done_s)
        output = ModelOutput(
            step.step_id, [0] * work.num_sampled, busy_s=seconds,
            expert_loads=self._costs.expert_loads(work),
        )  # fmt: skip
        return Ran(end_s, output, [], work)

    def _running(self, lane: int, at_s: float) -> _Running | None:
        """What the lane runs then, of the steps that it has been handed."""
        steps = self._steps[lane]
        return next((one for one in steps if one.begin_s <= at_s < one.end_s), None)

    def _seconds(self, work: Work, share: float, other: _Running | None) -> float:
        costs, whole = self._costs, self._costs.units
        units = _units(share, whole)
        if other is None:
            return costs.seconds(work, units)
        beside = Beside(other.work, _units(other.share, whole))
        both = max(0.0, share + other.share - 1)
        return costs.seconds(work, units, beside) * share / (share - both / 2)


def _units(share: float, whole: int) -> int:
    return max(1, round(share * whole))
