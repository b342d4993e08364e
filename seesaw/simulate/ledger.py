"""Notes of a simulation as it goes, and the result that comes of them.

Is told of steps, transfers, ends and losses; decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field

from seesaw.latency import Spread, Timing, samples
from seesaw.scheduler.counters import StepCounts
from seesaw.scheduler.output import ModelOutput, Phase, SchedulerOutput, TransferDone
from seesaw.scheduler.request import Request
from seesaw.scheduler.stats import SchedulerStats
from seesaw.simulate.replica import Ran
from seesaw.simulate.results import Part, Result
from seesaw.simulate.setup import Setup


@dataclass(slots=True)
class _ReplicaNotes:
    done_s: float = 0.0
    """When the latest result came."""
    phase_s: dict[str, float] = field(default_factory=dict)
    best_rows: int = 0
    """Most answers that one step of phase "decode" went on with."""
    beginning: dict[str, int] = field(default_factory=dict)
    """Prompt tokens of those that run and have no row yet that draws."""
    moving: dict[int, str] = field(default_factory=dict)
    """Stores, loads and relays in flight."""


@dataclass(slots=True)
class StepNote:
    """A step in flight: when it was handed over, what it does, whose first token it draws, and to
    which phase the layout changes before it."""

    handed_over_s: float
    kind: str
    first: Sequence[str]
    changes_to: Phase | None


class Ledger:
    """Replicas by their index, times of the simulated machine."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        count = len(setup.scenario.requests)
        self._replicas = [_ReplicaNotes() for _ in range(setup.num_replicas)]
        self._scheduled_s = [math.nan] * count
        self._first_s = [math.nan] * count
        self._end_s = [math.nan] * count
        self._answers = [0] * count
        self._bubble_s = [0.0] * count
        self._token_s: list[list[float]] | None = None
        if setup.scenario.times_tokens:
            self._token_s = [[] for _ in range(count)]
        self._input_tokens = self._output_tokens = 0  # of requests that ended
        self._steady: Part | None = None
        self._elapsed_s = 0.0
        self._bytes = {"store": 0, "load": 0, "relay": 0}
        self._weights: dict[str, int] = {}
        self._num_transitions = 0
        self._transition_s = 0.0
        self._num_lost = 0
        self._expert_loads = 0.0

    # -- as it goes --------------------------------------------------------------------------------

    def submitted(self, replica: int, step: SchedulerOutput, ran: Ran, now_s: float) -> StepNote:
        notes, work = self._replicas[replica], ran.work
        for new in step.new_requests:
            notes.beginning[new.request_id] = len(new.prompt_token_ids)
            number = int(new.request_id)
            if math.isnan(self._scheduled_s[number]):
                self._scheduled_s[number] = now_s
        notes.moving.update((one.transfer_id, "store") for one in step.stores)
        notes.moving.update((one.transfer_id, "load") for one in step.loads)
        notes.moving.update((one.transfer_id, "relay") for one in step.relays)
        if ran.bubble_s > 0:
            for row in step.rows:
                self._bubble_s[int(row.request_id)] += ran.bubble_s
        kind: str = step.phase
        if kind == "decode":
            notes.best_rows = max(notes.best_rows, work.num_sampled)
            if work.num_tokens > work.num_rows:
                kind = "mixed"
        first = self._first_tokens(notes, step) if notes.beginning else ()
        return StepNote(now_s, kind, first, step.phase if step.reshard else None)

    def _first_tokens(self, notes: _ReplicaNotes, step: SchedulerOutput) -> list[str]:
        beginning = notes.beginning
        first = [row.request_id for row in step.rows if row.samples and row.request_id in beginning]
        for request_id in first:
            del beginning[request_id]
        return first

    def step_done(self, replica: int, note: StepNote, done: ModelOutput, now_s: float) -> None:
        notes = self._replicas[replica]
        seconds = now_s - max(notes.done_s, note.handed_over_s)
        notes.done_s = now_s
        if seconds > 0:
            reshard_s = min(seconds, done.reshard_s)
            phase_s = notes.phase_s
            phase_s[note.kind] = phase_s.get(note.kind, 0.0) + seconds - reshard_s
            phase_s["reshard"] = phase_s.get("reshard", 0.0) + reshard_s
        self._transition_s += done.reshard_s
        self._expert_loads += done.expert_loads
        if note.changes_to is not None:
            self._num_transitions += 1
            for source, nbytes in self._setup.weight_bytes(note.changes_to).items():
                self._weights[source] = self._weights.get(source, 0) + nbytes
        for request_id in note.first:
            self._first_s[int(request_id)] = now_s

    def advanced(self, requests: Iterable[Request], now_s: float) -> None:
        """These have tokens that were not known before."""
        if self._token_s is None:
            return
        for request in requests:
            times = self._token_s[int(request.request_id)]
            times += [now_s] * (request.num_output_tokens - len(times))

    def transferred(self, replica: int, done: TransferDone) -> None:
        self._bytes[self._replicas[replica].moving.pop(done.transfer_id)] += done.num_bytes

    def finished(self, request: Request, now_s: float) -> None:
        number = int(request.request_id)
        self._end_s[number] = self._elapsed_s = now_s
        self._answers[number] = request.num_output_tokens
        self._input_tokens += request.num_prompt
        self._output_tokens += request.num_output_tokens

    def lost(self, replica: int, request_ids: Collection[str]) -> None:
        """A replica died with these, which have to begin anew."""
        if self._token_s is not None:
            for request_id in request_ids:
                self._token_s[int(request_id)].clear()
        notes = self._replicas[replica]
        notes.beginning.clear()
        notes.moving.clear()
        self._num_lost += len(request_ids)

    def none_waits(self, left: Sequence[Request], now_s: float) -> None:
        """No request waits any more, and these have not ended."""
        best = sum(notes.best_rows for notes in self._replicas) * self._setup.decode.pp
        if self._steady is not None or 2 * len(left) >= best:
            return
        begun = [request for request in left if request.num_output_tokens]
        self._steady = Part(
            seconds=now_s,
            input_tokens=self._input_tokens + sum(one.num_prompt for one in begun),
            output_tokens=self._output_tokens + sum(one.num_output_tokens for one in begun),
        )

    # -- in the end --------------------------------------------------------------------------------

    def result(
        self, stats: SchedulerStats, counts: StepCounts | None, busy_s: Sequence[float]
    ) -> Result:
        setup = self._setup
        scenario = setup.scenario
        elapsed_s = self._elapsed_s
        input_tokens, output_tokens = self._input_tokens, self._output_tokens
        steady = self._steady or Part(
            seconds=elapsed_s, input_tokens=input_tokens, output_tokens=output_tokens
        )
        timings = self._timings()
        latencies = samples(timings)
        faults = asdict(scenario.faults)
        return Result(
            model=scenario.config.model,
            machine=scenario.machine.slug,
            prefill_layout=str(scenario.layouts[0]),
            decode_layout=str(scenario.layouts[1]),
            policy=setup.policy,
            num_requests=len(scenario.requests),
            elapsed_s=elapsed_s,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            phase_s=self._phases(),
            num_transitions=self._num_transitions,
            transition_s=self._transition_s / setup.num_replicas,
            kv_store_bytes=self._bytes["store"],
            kv_load_bytes=self._bytes["load"],
            kv_relay_bytes=self._bytes["relay"],
            weight_bytes_moved=self._weights,
            mean_decode_batch=stats.mean_decode_batch,
            num_preemptions=stats.num_preemptions,
            num_lost=self._num_lost,
            steady=steady,
            tail=Part(
                seconds=elapsed_s - steady.seconds,
                input_tokens=input_tokens - steady.input_tokens,
                output_tokens=output_tokens - steady.output_tokens,
            ),
            busy_share=[min(1.0, seconds / elapsed_s) for seconds in busy_s],
            latency_s={name: Spread.of(values) for name, values in latencies.items()},
            bubble_s=Spread.of(self._bubble_s),
            scheduler=asdict(stats),
            counts=counts,
            memory=self._memory(),
            faults=faults,
            seed=scenario.seed,
            expert_loads=self._expert_loads,
            samples={**latencies, "bubble": self._bubble_s},
            timings=timings if self._token_s is not None else (),
        )

    def _memory(self) -> dict[str, int]:
        plan = self._setup.memory
        names = ("num_blocks", "block_size", "prefill_blocks", "tier_blocks", "tier_block_size",
                 "max_model_len")  # fmt: skip
        return {name: getattr(plan, name) for name in names}

    def _phases(self) -> dict[str, float]:
        count = len(self._replicas)
        names = ("prefill", "decode", "mixed", "reshard")
        phases = {
            name: sum(notes.phase_s.get(name, 0.0) for notes in self._replicas) / count
            for name in names
        }
        phases["idle"] = max(0.0, self._elapsed_s - sum(phases.values()))
        return phases

    def _timings(self) -> list[Timing]:
        arrivals = [arrival_s for arrival_s, _, _ in self._setup.scenario.requests]
        if self._token_s is not None:
            return list(map(Timing.of, arrivals, self._scheduled_s, self._token_s))
        moments = (arrivals, self._scheduled_s, self._first_s, self._end_s, self._answers)
        return [
            Timing(arrival_s=came, scheduled_s=begun, first_s=first, end_s=end, num_tokens=count)
            for came, begun, first, end, count in zip(*moments, strict=True)
        ]
