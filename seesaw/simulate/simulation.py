"""The engine's schedulers and policies against a clock: requests arrive, steps are planned and
timed, reports come back, in the order of their times.

Owns the events. What a step costs is said by `replica.py`, what goes wrong by `faults.py`; what is
noted, and the result, is the business of `ledger.py`.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from typing import Literal, NamedTuple

from seesaw.sampling_params import SamplingParams
from seesaw.scheduler.counters import StepCounts
from seesaw.scheduler.output import ModelOutput, SchedulerOutput, TransferDone
from seesaw.scheduler.request import Request
from seesaw.scheduler.scheduler import Scheduler
from seesaw.scheduler.stats import SchedulerStats
from seesaw.simulate.ledger import Ledger, StepNote
from seesaw.simulate.replica import Recorder
from seesaw.simulate.results import Result
from seesaw.simulate.scenario import Arrival, HostCosts, Scenario
from seesaw.simulate.setup import Clock, Setup

__all__ = ["Arrival", "HostCosts", "Result", "Scenario", "simulate"]

QUEUED_PER_SEQ = 2
"""As `Engine.max_num_queued` has it: what a batch job keeps in the engine at once."""
EOS = 1
"""Ends an answer whose length was not known; every other token is 0."""


class StepDone(NamedTuple):
    """A step's result, on its way to the driver."""

    output: ModelOutput
    note: StepNote


Event = StepDone | TransferDone | Literal["arrival", "death", "restart"]
Progress = Callable[[int, int], None]


def simulate(
    scenario: Scenario, recorder: Recorder | None = None, progress: Progress | None = None
) -> Result:
    """Run it to the end of the last answer; the same scenario gives the same result.

    `progress(requests done, requests in all)` is called whenever some have ended. Raises
    ConfigError where the model does not fit, RequestError where a request could never run.
    """
    return _Simulation(Setup(scenario), recorder, progress).run()


class _Replica:
    """A scheduler and the clock of its ranks, and which requests they have. `life` counts how often
    it began anew: reports of an earlier life are not heard any more."""

    def __init__(self, index: int, scheduler: Scheduler, clock: Clock) -> None:
        self.index = index
        self.scheduler = scheduler
        self.clock = clock
        self.life = 0
        self.is_up = True
        self.driver_s = 0.0
        """Until then a driver of its own is busy."""
        self.left = 0
        """Positions that unfinished requests may need."""
        self.requests: dict[str, Request] = {}
        """Unfinished ones, by their number among the scenario's."""


class _Simulation:
    def __init__(self, setup: Setup, recorder: Recorder | None, progress: Progress | None) -> None:
        self._setup = setup
        self._scenario = scenario = setup.scenario
        self._recorder = recorder
        self._progress = progress
        self._rng = random.Random(scenario.seed)
        self._now_s = 0.0  # of the driver, which does one thing at a time
        self._order = itertools.count()
        self._events: list[tuple[float, int, int, int, Event]] = []
        self._replicas = [
            _Replica(index, scheduler, self._make_clock(index, 0.0))
            for index, scheduler in enumerate(setup.make_schedulers())
        ]
        for index in range(setup.num_replicas):
            for at_s in setup.deaths_of(index):
                self._push(at_s, index, 0, "death")
        self._ledger = Ledger(setup)
        self._past: list[Scheduler] = []  # of lives that ended
        self._most_inside = len(scenario.requests)
        if not scenario.open_loop:
            self._most_inside = setup.num_replicas * (
                QUEUED_PER_SEQ * scenario.config.max_num_seqs + setup.memory.tier_blocks
            )
        self._next = 0  # request to come
        self._awaits_arrival = False
        self._num_done = 0
        self._cap = scenario.max_tokens or scenario.longest_answer
        self._sampling: dict[int, SamplingParams] = {}
        self._last: dict[str, int] = {}  # where an answer of unknown length ends

    def run(self) -> Result:
        self._check_requests()
        self._feed()
        total, events = len(self._scenario.requests), self._events
        while self._num_done < total:
            assert events, f"{total - self._num_done} requests are left, and nothing is under way"
            at_s, _, index, life, event = heapq.heappop(events)
            if at_s > self._now_s:
                self._now_s = at_s
            self._handle(event, index, life)
        self._settle()
        # What a replica that is down did is of the past already.
        schedulers = [replica.scheduler for replica in self._replicas if replica.is_up]
        schedulers += self._past
        counters = [one.counter for one in schedulers if one.counter is not None]
        return self._ledger.result(
            stats=SchedulerStats.total(one.stats for one in schedulers),
            counts=StepCounts.total(one.counts for one in counters) if counters else None,
            busy_s=[seconds for replica in self._replicas for seconds in replica.clock.busy_s],
        )

    def _handle(self, event: Event, index: int, life: int) -> None:
        if event == "arrival":
            self._awaits_arrival = False
            self._feed()
            return
        replica = self._replicas[index]
        if event == "death":
            self._die(replica)
        elif event == "restart":
            self._restart(replica)
        elif life != replica.life:
            return  # from a rank that is gone
        elif isinstance(event, StepDone):
            self._step_done(replica, event)
        else:
            self._ledger.transferred(index, event)
            replica.scheduler.transferred(event)
            self._issue(replica)

    def _settle(self) -> None:
        """Count what is still being copied for answers that have ended."""
        for _, _, index, life, event in self._events:
            if isinstance(event, TransferDone) and life == self._replicas[index].life:
                self._ledger.transferred(index, event)

    def _push(self, at_s: float, index: int, life: int, event: Event) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), index, life, event))

    # -- requests ----------------------------------------------------------------------------------

    def _check_requests(self) -> None:
        """Raises RequestError for the first that could never run."""
        validate = self._replicas[0].scheduler.validate
        for prompt, answer in dict.fromkeys((p, a) for _, p, a in self._scenario.requests):
            validate(prompt, self._sampling_of(answer))

    def _sampling_of(self, answer: int) -> SamplingParams:
        known = self._scenario.answers_known
        most = answer if known else self._cap
        if most not in self._sampling:
            self._sampling[most] = SamplingParams(temperature=0, ignore_eos=known, max_tokens=most)
        return self._sampling[most]

    def _feed(self, also: _Replica | None = None) -> None:
        """Take in requests that have come, as many as there may be inside, each where the least is
        left to do; then plan steps there and for `also`."""
        requests, replicas = self._scenario.requests, self._replicas
        touched = set() if also is None else {also.index}
        while self._next < len(requests) and self._next - self._num_done < self._most_inside:
            arrival_s = requests[self._next][0]
            if arrival_s > self._now_s:
                if not self._awaits_arrival:
                    self._awaits_arrival = True
                    self._push(arrival_s, -1, 0, "arrival")
                break
            replica = replicas[0]
            if len(replicas) > 1:
                replica = min(replicas, key=lambda replica: replica.left)
            touched.add(replica.index)
            self._add(replica, self._next)
            self._next += 1
        for index in sorted(touched):
            self._issue(replicas[index])

    def _add(self, replica: _Replica, number: int) -> None:
        """Where the replica is down, the request waits for its next life."""
        arrival_s, prompt, answer = self._scenario.requests[number]
        request = Request(
            str(number),
            [0] * prompt,
            self._sampling_of(answer),
            seed=0,
            eos_token_ids=(EOS,),
            max_model_len=replica.scheduler.config.max_model_len,
            arrival_s=arrival_s,
        )
        if not self._scenario.answers_known:
            self._last[request.request_id] = prompt + answer - 1
        replica.requests[request.request_id] = request
        replica.left += request.limit
        if replica.is_up:
            replica.scheduler.add(request)

    # -- steps -------------------------------------------------------------------------------------

    def _issue(self, replica: _Replica) -> None:
        """Hand over all steps that can be planned now."""
        if not replica.is_up:
            return
        scheduler, clock, host = replica.scheduler, replica.clock, self._scenario.host
        index, life = replica.index, replica.life
        while (step := scheduler.schedule()) is not None:
            planning_s = host.step_s + host.row_s * len(step.rows)
            if host.per_replica:
                submitted_s = replica.driver_s = max(replica.driver_s, self._now_s) + planning_s
            else:
                submitted_s = self._now_s = self._now_s + planning_s
            ran = clock.submit(step, submitted_s)
            if self._last:
                self._draw(step, ran.output)
            note = self._ledger.submitted(index, step, ran, submitted_s)
            self._push(ran.done_s + self._late_s(), index, life, StepDone(ran.output, note))
            for done_s, transfer in ran.transfers:
                self._push(done_s + self._late_s(), index, life, transfer)

    def _late_s(self) -> float:
        return self._scenario.faults.late_by(self._rng)

    def _draw(self, step: SchedulerOutput, output: ModelOutput) -> None:
        last = self._last
        output.token_ids = [
            EOS if last.get(row.request_id) == row.token_start + row.num_tokens else 0
            for row in step.rows
            if row.samples
        ]

    def _step_done(self, replica: _Replica, event: StepDone) -> None:
        now_s = self._now_s
        self._ledger.step_done(replica.index, event.note, event.output, now_s)
        update = replica.scheduler.update(event.output)
        finished = update.finished
        self._ledger.advanced(update.advanced, now_s)
        for request in finished:
            self._ledger.finished(request, now_s)
            replica.left -= request.limit
            del replica.requests[request.request_id]
            self._last.pop(request.request_id, None)
        self._num_done += len(finished)
        if not finished:
            self._issue(replica)
            return
        self._feed(replica)
        total = len(self._scenario.requests)
        if self._next == total and not any(one.scheduler.num_waiting for one in self._replicas):
            left = [request for one in self._replicas for request in one.requests.values()]
            self._ledger.none_waits(left, now_s)
        if self._progress is not None:
            self._progress(self._num_done, total)

    # -- deaths ------------------------------------------------------------------------------------

    def _make_clock(self, index: int, begin_s: float) -> Clock:
        later = (at_s for at_s in self._setup.deaths_of(index) if at_s >= begin_s)
        return self._setup.make_clock(
            index, self._recorder, begin_s=begin_s, stop_s=next(later, math.inf)
        )

    def _die(self, replica: _Replica) -> None:
        if not replica.is_up:
            return
        replica.is_up = False
        replica.life += 1
        self._ledger.lost(replica.index, replica.requests)
        self._past.append(replica.scheduler)
        self._push(self._now_s + self._scenario.faults.restart_s, replica.index, 0, "restart")

    def _restart(self, replica: _Replica) -> None:
        """From nothing, with all requests that it had or that came for it meanwhile."""
        replica.is_up = True
        replica.scheduler = self._setup.make_schedulers()[replica.index]
        busy_s = replica.clock.busy_s
        replica.clock = self._make_clock(replica.index, self._now_s)
        replica.clock.busy_s = busy_s
        numbers, replica.requests = [int(number) for number in replica.requests], {}
        replica.left = 0
        for number in numbers:
            self._add(replica, number)
        self._issue(replica)
