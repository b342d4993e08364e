"""The replicas of a model under one driver: gives each request to one of them, plans and submits
their steps, takes in what comes back, counts what moved.

Each replica has a scheduler of its own; with one device there is one. Knows no texts and no
callers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from seesaw.engine.executor import Executor
from seesaw.engine.profile import StepProfile
from seesaw.engine.stalls import IdleClock
from seesaw.engine.stats import MovementStats, TransferBytes
from seesaw.engine.tracing import EngineTrace, Move
from seesaw.outputs import EngineStatus, FinishReason
from seesaw.plan.choice import LayoutChoice
from seesaw.sampling_params import SamplingParams
from seesaw.scheduler.counters import StepCounter, StepCounts
from seesaw.scheduler.output import ModelOutput, Phase, SchedulerOutput, TransferDone
from seesaw.scheduler.request import Request
from seesaw.scheduler.scheduler import Scheduler

Event = tuple[int, ModelOutput | TransferDone]
StepObserver = Callable[[SchedulerOutput, float], None]
"""Is told of each step that came back: what it was, and the seconds since the one before it."""


class Replicas:
    """`predict` says what layouts and sizes make each movement cost, in bytes; `commit_tier` is
    told for which replica how many tier blocks (from 0 on) must be backed by memory before a step
    is submitted.
    """

    def __init__(
        self,
        executor: Executor,
        schedulers: Sequence[Scheduler],
        *,
        predict: TransferBytes,
        commit_tier: Callable[[int, int], None] | None = None,
    ) -> None:
        self._executor = executor
        self._trace: EngineTrace | None = None
        self._schedulers = schedulers
        self._predict = predict
        self._commit_tier = commit_tier
        self._home: dict[str, int] = {}
        self._load = [0] * len(schedulers)  # positions that unfinished requests may need
        self._moving: dict[tuple[int, int], Move] = {}  # by replica and transfer id
        self._steps: dict[tuple[int, int], SchedulerOutput] = {}  # in flight
        self.observer: StepObserver | None = None
        self._changed_s = time.perf_counter()
        self._movement = MovementStats()
        self._idle = [IdleClock(self._movement.stalls) for _ in schedulers]
        self._profile = StepProfile()

    # -- requests ---------------------------------------------------------------------------------

    def validate(self, num_prompt: int, sampling: SamplingParams) -> None:
        """Raise RequestError where such a request could never run. For any thread."""
        self._schedulers[0].validate(num_prompt, sampling)  # they are all alike

    def add(self, request: Request) -> None:
        """Queue a request where the least is left to do."""
        replica = self._load.index(min(self._load))
        self._home[request.request_id] = replica
        self._load[replica] += request.limit
        self._schedulers[replica].add(request)

    def finish(
        self, request_id: str, reason: FinishReason, stop_reason: int | str | None = None
    ) -> Request | None:
        """End a request from outside. None where it has ended already or is unknown."""
        replica = self._home.get(request_id)
        if replica is None:
            return None
        request = self._schedulers[replica].finish(request_id, reason, stop_reason)
        if request is not None:
            self._left(request)
        return request

    def _left(self, request: Request) -> None:
        self._load[self._home.pop(request.request_id)] -= request.limit

    @property
    def schedulers(self) -> Sequence[Scheduler]:
        return self._schedulers

    @property
    def predict(self) -> TransferBytes:
        return self._predict

    @property
    def movement(self) -> MovementStats:
        """What was moved and how long phases took, so far."""
        movement = self._movement
        movement.weight_bytes_moved = {**movement.weight_bytes_moved, **self._executor.weight_bytes}
        peaks = sum(scheduler.stats.tier_peak_blocks for scheduler in self._schedulers)
        movement.tier_peak_bytes = peaks * self._predict.tier_block_bytes
        return movement

    def count_steps(self, tile: int) -> None:
        """Have schedulers count what their steps ask of the model from now on."""
        for scheduler in self._schedulers:
            scheduler.counter = StepCounter(tile)

    @property
    def step_counts(self) -> StepCounts | None:
        counters = [scheduler.counter for scheduler in self._schedulers]
        counts = [counter.counts for counter in counters if counter is not None]
        return StepCounts.total(counts) if counts else None

    def status(self, layouts: LayoutChoice) -> EngineStatus:
        schedulers, count = self._schedulers, len(self._schedulers)
        first, stats = schedulers[0], [scheduler.stats for scheduler in schedulers]
        decoded = sum(one.num_decode_rows for one in stats)
        tier_share = None
        if (tier := first.config.tier) is not None:
            used = sum(scheduler.num_tier_blocks_used for scheduler in schedulers)
            tier_share = used / (count * tier.tier_blocks)
        prefills = tier is not None and first.phase == "prefill"
        return EngineStatus(
            phase="" if tier is None else first.phase,
            layout=(layouts.prefill if prefills else layouts.decode).short,
            device_share=sum(scheduler.kv_usage for scheduler in schedulers) / count,
            tier_share=tier_share,
            num_begun=sum(scheduler.num_running for scheduler in schedulers),
            num_waiting=sum(scheduler.num_waiting for scheduler in schedulers),
            prompt_tokens=sum(one.num_computed_tokens for one in stats) - decoded,
            decoded_tokens=decoded,
            prefill_s=self._movement.prefill_s,
            decode_s=self._movement.decode_s,
        )

    @property
    def num_in_flight(self) -> int:
        """Steps and transfers that have been submitted and not been taken in."""
        return sum(s.num_in_flight + s.num_transfers for s in self._schedulers)

    # -- steps ------------------------------------------------------------------------------------

    def issue(self) -> list[str]:
        """Submit all steps that can be planned now; ids of requests that begin in them."""
        began_s = time.perf_counter()
        begun: list[str] = []
        for replica, scheduler in enumerate(self._schedulers):
            while (step := scheduler.schedule()) is not None:
                self._submit(step, replica)
                begun += [new.request_id for new in step.new_requests]
                if self._trace is not None:
                    self._trace.planned(replica, step, began_s)
                    began_s = time.perf_counter()
        return begun

    def _submit(self, step: SchedulerOutput, replica: int) -> None:
        self._steps[replica, step.step_id] = step
        if step.stores or step.loads or step.relays:
            self._note_moves(step, replica)
        if step.reshard:
            self._movement.predicted.add_weights(self._predict.weights(step.phase))
        if step.phase == "decode" and step.num_tokens:
            under_way = self._idle[replica].under_way
            self._movement.stalls.rows_loading += under_way["load"] + under_way["relay"]
        self._idle[replica].look(self._schedulers[replica].num_in_flight)
        self._executor.submit(step, replica)

    def _note_moves(self, step: SchedulerOutput, replica: int) -> None:
        predicted = self._movement.predicted
        for store in step.stores:
            size = self._predict.store(store.phase, store.num_tokens)
            self._expect(replica, "store", store.transfer_id, store.phase, size)
            predicted.kv_store_bytes += size
            self._movement.tier_pieces += self._predict.pieces(store.num_tokens, store.phase)
            if self._commit_tier is not None:
                self._commit_tier(replica, max(store.tier_blocks) + 1)
        for load in step.loads:
            size = self._predict.load(load.num_tokens)
            self._expect(replica, "load", load.transfer_id, "decode", size)
            predicted.kv_load_bytes += size
            self._movement.tier_pieces += self._predict.pieces(load.num_tokens)
        for relay in step.relays:
            num_bytes, peer_bytes = self._predict.relay(relay.num_tokens)
            self._expect(replica, "relay", relay.transfer_id, "decode", num_bytes)
            predicted.kv_relay_bytes += num_bytes
            predicted.kv_peer_bytes += peer_bytes

    def _expect(
        self, replica: int, kind: Move, transfer_id: int, phase: Phase, num_bytes: int
    ) -> None:
        """A transfer from or to the pool of `phase` begins."""
        self._moving[replica, transfer_id] = kind
        self._idle[replica].under_way[kind] += 1
        if self._trace is not None:
            self._trace.expects(replica, kind, transfer_id, phase, num_bytes)

    def collect(self) -> Event:
        """Wait for the next finished step or transfer. Raises EngineDeadError."""
        return self._executor.collect()

    def update(self, event: Event) -> list[Request]:
        """Take in what `collect` returned; requests with new tokens, ended ones included."""
        began_s = time.perf_counter()
        advanced = self._take(*event)
        self._idle[event[0]].look(self._schedulers[event[0]].num_in_flight)
        if self._trace is not None:
            self._trace.updated(*event, began_s)
        return advanced

    def _take(self, replica: int, done: ModelOutput | TransferDone) -> list[Request]:
        scheduler = self._schedulers[replica]
        if isinstance(done, TransferDone):
            kind = self._moving.pop((replica, done.transfer_id))
            self._idle[replica].under_way[kind] -= 1
            if kind == "store":
                self._movement.kv_store_bytes += done.num_bytes
            elif kind == "load":
                self._movement.kv_load_bytes += done.num_bytes
            else:
                self._movement.kv_relay_bytes += done.num_bytes
                self._movement.kv_peer_bytes += done.peer_bytes
            scheduler.transferred(done)
            return []
        self._note_time(self._steps.pop((replica, done.step_id)), done)
        result = scheduler.update(done)
        for request in result.finished:
            self._left(request)
        return result.advanced

    def _note_time(self, step: SchedulerOutput, done: ModelOutput) -> None:
        """The time since the last step came back belongs to this one's phase."""
        now_s = time.perf_counter()
        elapsed_s = max(0.0, now_s - self._changed_s - done.reshard_s)
        self._changed_s = now_s
        self._movement.add_time(step.phase, elapsed_s, done.reshard_s)
        stalls = self._movement.stalls
        stalls.weights_s += done.reshard_s
        stalls.stages_s += done.stage_wait_s
        stalls.visible_s += done.visible_s
        self._movement.expert_loads += round(done.expert_loads)
        if self.observer is not None:
            self.observer(step, elapsed_s)
        if done.parts:
            self._profile.add(step, done.parts, elapsed_s + done.reshard_s)

    def take_profile(self) -> StepProfile:
        """Of the steps since the last call; empty without `profile`."""
        taken, self._profile = self._profile, StepProfile()
        return taken

    def trace_to(self, trace: EngineTrace) -> None:
        """Tell `trace` of all that is planned, reported and taken in from now on."""
        self._trace = trace
        self._executor.hear = trace.heard

    def resume_clock(self) -> None:
        """Time before now belongs to no phase: there was nothing to do."""
        self._changed_s = time.perf_counter()

    def describe(self) -> list[str]:
        """Ranks, and what each scheduler holds, in lines for people."""
        lines = self._executor.describe()
        for replica, scheduler in enumerate(self._schedulers):
            lines += ["", f"replica {replica}, in phase {scheduler.phase}:"]
            lines += scheduler.describe()
        return lines

    def shutdown(self) -> None:
        self._executor.shutdown()
