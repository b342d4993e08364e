"""Plays a trace: a scheduler and its policy against the worker model.

Steps and copies are reported late, in an order drawn from the trace's seed. Every step is checked
while it is played (`worker_model`, `rules`), every answer against the one that the request would
get alone, and at the end that nothing is left behind.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

from seesaw.sampling_params import SamplingParams
from seesaw.scheduler import policies
from seesaw.scheduler.counters import StepCounter
from seesaw.scheduler.output import ModelOutput, Row, SchedulerOutput, TransferDone
from seesaw.scheduler.policy import SharesDevice
from seesaw.scheduler.request import Request
from seesaw.scheduler.scheduler import Scheduler
from seesaw.scheduler.stats import SchedulerStats
from tests.scheduler.lane_costs import FakeLaneCosts
from tests.scheduler.rules import Rules
from tests.scheduler.traces import (
    EOS,
    POLICY_OPTIONS,
    Script,
    Trace,
    ends_with,
    num_positions,
    serial_answer,
)
from tests.scheduler.worker_model import WorkerModel

FLUSH = "flush"
TILE = 4
MOST_TIMES = {"continuous": 1, "sarathi": 1, "prefill-first": 10, "sarathi-serve": 10}
"""The serial time, that a trace may take: others may do much for nothing."""


@dataclass
class Played:
    outputs: list[SchedulerOutput]
    requests: list[Request]
    stats: SchedulerStats
    aborted_as: list[str]
    """The state of each aborted request at that time, a plus where it had yielded before."""


def play(trace: Trace) -> Played:
    player = Player(trace)
    player.play()
    return player.result()


class Player:
    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.rng = random.Random(trace.delivery_seed)
        policy = policies.make(trace.policy, trace.options)
        if isinstance(policy, SharesDevice):
            policy.share_by(FakeLaneCosts())  # type: ignore[arg-type]
        self.scheduler = Scheduler(trace.config, policy)
        self.scheduler.counter = StepCounter(TILE)
        self.worker = WorkerModel(trace.config, trace.vocab_size)
        self.requests: dict[int, Request] = {}
        self.rules = Rules(trace, self.worker, self.requests)
        self.outputs: list[SchedulerOutput] = []
        self.queued: list[deque[SchedulerOutput]] = [deque() for _ in range(trace.config.num_lanes)]
        """Steps of each lane that the workers have not run."""
        self.pending: list[ModelOutput] = []
        """What steps gave whose end is not reported."""
        self.arrived_at: dict[int, int] = {}
        self.yielded_at: dict[int, int] = {}
        self.aborted: dict[int, str] = {}
        self.ended: list[str] = []
        self.tick = 0

    # -- the loop ---------------------------------------------------------------------------------

    def play(self) -> None:
        last_arrival = max((script.arrival_tick for script in self.trace.scripts), default=0)
        most_ticks = last_arrival + self._most_ticks()
        while len(self.requests) < len(self.trace.scripts) or self.scheduler.num_unfinished:
            self._arrive()
            self._abort()
            self._turn()
            self.tick += 1
            assert self.tick <= most_ticks, f"not done after {most_ticks} ticks: starved or stuck"
        self._drain()
        self._check_end()

    def _most_ticks(self) -> int:
        """The oldest running request never yields under `continuous` and moves at least once in
        each round of steps; a step takes up to two ticks, and half of the ticks may deliver. Under
        `sarathi` nobody yields, and each step has a whole chunk, or a decode. Other policies may
        take so many times as long."""
        trace, config = self.trace, self.trace.config
        chunk = trace.options.get("max_prefill_chunk") or config.max_num_batched_tokens
        if trace.policy == "sarathi":
            tile, budget = trace.options["tile"], config.max_num_batched_tokens
            chunk = min(trace.options["chunk"], budget - budget % tile or budget)
        steps = 0
        for script in trace.scripts:
            most = num_positions(script, config.max_model_len)
            steps += -(-most // min(chunk, config.max_num_batched_tokens))
            steps += most - len(script.prompt)
        in_flight = max(config.max_steps_in_flight, *(n + 1 for n in self.worker.stages.values()))
        ticks = 2 * (steps * (in_flight + 1) + 10)
        return MOST_TIMES.get(trace.policy, 50) * ticks

    def _arrive(self) -> None:
        for index, script in enumerate(self.trace.scripts):
            if index in self.requests or script.arrival_tick > self.tick:
                continue
            self.scheduler.validate(len(script.prompt), script.sampling)
            request = self.make_request(str(index), script)
            self.scheduler.add(request)
            self.requests[index], self.arrived_at[index] = request, self.tick

    def make_request(self, request_id: str, script: Script) -> Request:
        return Request(
            request_id,
            script.prompt,
            script.sampling,
            seed=script.seed,
            eos_token_ids=(EOS,),
            max_model_len=self.trace.config.max_model_len,
            arrival_s=0.1 * script.arrival_tick,
        )

    def _abort(self) -> None:
        for index, request in self.requests.items():
            if request.finish_reason is None and self._is_abort_due(index, request):
                state = state_of(self.worker, request)
                self.aborted[index] = state + "+" * (request.num_preemptions > 0)
                assert self.scheduler.finish(request.request_id, "abort") is request
                assert self.scheduler.finish(request.request_id, "abort") is None, "ended twice"
                self.ended.append(request.request_id)

    def _is_abort_due(self, index: int, request: Request) -> bool:
        script = self.trace.scripts[index]
        if request.num_preemptions:
            self.yielded_at.setdefault(index, self.tick)
        if script.abort_tick is not None:
            return self.tick >= self.arrived_at[index] + script.abort_tick
        if script.abort_after_tokens is not None:
            return request.num_output_tokens >= script.abort_after_tokens
        if script.abort_after_preemption is not None:
            yielded_at = self.yielded_at.get(index, self.tick)
            return self.tick >= yielded_at + script.abort_after_preemption and (
                index in self.yielded_at
            )
        return script.abort_in_state == state_of(self.worker, request)

    def _turn(self) -> None:
        """Issue a step or report one, or a copy, as an engine with threads might."""
        pace = self.trace.transfer_pace
        if self.rng.random() < pace:
            self.worker.transfers.copy_some(self.rng)
        if self.worker.transfers.open and self.rng.random() < pace:
            self._report_transfer()
        in_flight = len(self.pending) + sum(map(len, self.queued))
        assert self.scheduler.num_in_flight == in_flight
        if not in_flight or self.rng.random() < 0.6:
            step = self.scheduler.schedule()
            if step is not None:
                self._issue(step)
                return
        if any(self.queued) and not (self.pending and self.rng.random() < 0.5):
            self._run_queued()
        elif self.pending:
            self._deliver()
        elif self.worker.transfers.open:
            self._report_transfer()
        else:
            assert not self.scheduler.num_unfinished, "deadlock: nothing in flight, no step"

    def _issue(self, step: SchedulerOutput) -> None:
        in_flight = [self.outputs[output.step_id] for output in self.pending]
        self.rules.check(step, in_flight + [one for lane in self.queued for one in lane])
        self.outputs.append(step)
        self.worker.take_in(step)
        self.queued[step.lane].append(step)
        if self.trace.config.num_lanes == 1:
            self._run_queued()

    def _run_queued(self) -> None:
        """The first of some lane: lanes do not wait for each other."""
        lane = self.queued[0]
        if len(self.queued) > 1:
            lane = self.rng.choice([lane for lane in self.queued if lane])
        step = lane.popleft()
        output = self.worker.run(step)
        # Any times will do: they must not change an answer, nor break a rule.
        output.busy_s = self.rng.choice((0.0, 1e-3)) + 1e-4 * step.num_tokens * self.rng.random()
        output.reshard_s = step.reshard * self.rng.choice((0.0, 1e-3, 1.0))
        self.pending.append(output)

    def _deliver(self) -> None:
        index = 0 if self.trace.in_order else self.rng.randrange(len(self.pending))
        update = self.scheduler.update(self.pending.pop(index))
        assert len({id(r) for r in update.advanced}) == len(update.advanced)
        ended = [r for r in update.advanced if r.finish_reason is not None]
        assert update.finished == ended, "finished must be those that ended, in order"
        self.ended += [request.request_id for request in update.finished]
        for request in update.advanced:
            if request.request_id == FLUSH:
                continue
            pair = self.trace.scripts[int(request.request_id)].stop_pair
            answer = request.output_token_ids
            # Several tokens may have become known at once.
            hit = any(ends_with(answer[:end], pair) for end in range(2, len(answer) + 1))
            if hit and self.scheduler.finish(request.request_id, "stop", "pair") is not None:
                self.ended.append(request.request_id)

    def _report_transfer(self) -> None:
        transfer_id = self.rng.choice(sorted(self.worker.transfers.open))
        self.worker.transferred(transfer_id, self.rng)
        self.scheduler.transferred(TransferDone(transfer_id))

    def _drain(self) -> None:
        while any(self.queued):
            self._run_queued()
        while self.pending:
            self._deliver()
        while self.worker.transfers.open:
            self._report_transfer()

    @property
    def num_transitions(self) -> int:
        return sum(step.reshard for step in self.outputs)

    # -- at the end -------------------------------------------------------------------------------

    def _check_end(self) -> None:
        stats = self.scheduler.stats
        self._check_nothing_held()
        assert sorted(self.ended) == sorted(r.request_id for r in self.requests.values())
        for index, request in self.requests.items():
            self._check_answer(index, request)
        kept = sum(request.num_output_tokens for request in self.requests.values())
        assert stats.num_discarded_tokens == self.worker.num_drawn - kept
        assert stats.num_steps == len(self.outputs)
        assert stats.num_scheduled_tokens == sum(step.num_tokens for step in self.outputs)
        rows = [row for step in self.outputs for row in step.rows]
        whole = [row.num_tokens for row in rows if row.layer_stop == self.trace.config.num_layers]
        assert stats.num_computed_tokens == sum(whole)
        assert stats.num_decode_rows == sum(map(self._goes_on, rows))
        assert stats.num_transitions == self.num_transitions
        first = self.worker.first_start
        if self.trace.policy in ("continuous", *POLICY_OPTIONS):  # others may run later
            cached = {r.request_id: r.num_cached_tokens for r in self.requests.values()}
            assert {request_id: cached[request_id] for request_id in first} == first
            assert stats.num_cached_tokens == sum(first.values()) == sum(cached.values())
        assert stats.num_preemptions >= self.worker.num_preempted
        self.rules.check_transitions(stats)
        self._check_counts()
        self._check_forgotten()
        self._check_nothing_held()

    def _goes_on(self, row: Row) -> bool:
        """It continues an answer: through all layers, and it draws."""
        num_layers = row.layer_stop - row.layer_start
        is_whole = (row.num_tokens, num_layers) == (1, self.trace.config.num_layers)
        is_answer = row.token_start >= self.requests[int(row.request_id)].num_prompt
        return is_whole and is_answer and row.samples

    def _check_counts(self) -> None:
        """Against a count of the rows that were issued."""
        assert self.scheduler.counter is not None
        counts = self.scheduler.counter.counts
        sizes = [step.num_tokens for step in self.outputs if step.num_tokens]
        rows = [row for step in self.outputs for row in step.rows]
        assert counts.num_steps == len(sizes)
        kinds = (counts.num_prompt_steps, counts.num_decode_steps, counts.num_hybrid_steps)
        assert sum(kinds) == len(sizes)
        begun = [row for row in rows if row.layer_start == 0]  # not those that go on in a wave
        assert counts.num_tokens == sum(row.num_tokens for row in begun)
        assert counts.most_tokens == max(sizes, default=0)
        assert counts.num_padded_rows == sum(-(-size // TILE) * TILE - size for size in sizes)
        keys = sum(
            (row.token_start + row.num_tokens) * (row.layer_stop - row.layer_start) for row in rows
        )
        assert counts.prompt_key_layers + counts.decode_key_layers == keys
        assert counts.num_preempted == self.worker.num_preempted
        assert counts.num_decode_rows == sum(map(self._goes_on, rows))
        if not self.trace.config.enable_prefix_caching:
            positions = {
                (row.request_id, position)
                for row in begun
                for position in range(row.token_start, row.token_start + row.num_tokens)
            }
            assert counts.num_recomputed_tokens == counts.num_tokens - len(positions)

    def _check_nothing_held(self) -> None:
        scheduler = self.scheduler
        scheduler.check()
        assert scheduler.num_in_flight == scheduler.num_running == scheduler.num_waiting == 0
        assert scheduler.num_transfers == 0, "a copy is waited for that nobody makes"
        assert scheduler.kv_usage == 0, "blocks leaked"
        assert not self.worker.transfers.open

    def _check_answer(self, index: int, request: Request) -> None:
        answer, reason, stop_reason = serial_answer(self.trace.scripts[index], self.trace)
        got = request.output_token_ids
        assert request.tokens[: request.num_prompt] == list(self.trace.scripts[index].prompt)
        if index in self.aborted:
            assert request.finish_reason == "abort"
            assert got == answer[: len(got)]
        elif stop_reason == "pair":
            # What became known together with the pair is there too; the caller cuts it off.
            assert got[: len(answer)] == answer
            assert got == answer or not self.trace.in_order
        else:
            ended = (request.finish_reason, request.stop_reason)
            assert (got, ended) == (answer, (reason, stop_reason))

    def _check_forgotten(self) -> None:
        """Workers are told with the next step, so one more request shows what they still know."""
        sampling = SamplingParams(max_tokens=1)
        self.scheduler.add(self.make_request(FLUSH, Script((2,), sampling, 0, 0)))
        while self.scheduler.num_unfinished:
            step = self.scheduler.schedule()
            assert step is not None
            self.pending.append(self.worker.execute(step))
            assert set(self.worker.requests) <= {FLUSH}, "a worker still knows ended requests"
            self._drain()

    def result(self) -> Played:
        return Played(
            self.outputs,
            list(self.requests.values()),
            self.scheduler.stats,
            list(self.aborted.values()),
        )


def state_of(worker: WorkerModel, request: Request) -> str:
    """Where a request is in its life, as the workers see it."""
    known = worker.requests.get(request.request_id)
    if known is None:
        return "waiting"
    is_moving = worker.transfers.is_moving(request.request_id)
    if known.stored is None and known.pool == "decode" and is_moving:
        return "relaying"
    if known.stored is not None:
        if known.pool is not None:
            return "loading"
        return "storing" if is_moving else "stored"
    if known.pool is None:
        return "yielded"
    if known.pool == "prefill" or len(known.tokens) == len(known.new.prompt_token_ids):
        return "prefilling"
    return "resident"
