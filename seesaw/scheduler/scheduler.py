"""Decides what each step computes. Standard library only, deterministic; the same object runs in
engine and tests.

`schedule()` plans a step from what is known; `update()` takes in what a step drew, `transferred()`
that a copy of KV is complete. Several steps may be in flight, so a plan counts on tokens that are
still being drawn, and what was computed past a stop is dropped when it arrives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from seesaw.errors import RequestError
from seesaw.outputs import FinishReason
from seesaw.sampling_params import SamplingParams
from seesaw.scheduler.config import SchedulerConfig, TierConfig
from seesaw.scheduler.counters import StepCounter
from seesaw.scheduler.describe import describe
from seesaw.scheduler.occupancy import Occupancy
from seesaw.scheduler.output import (
    ModelOutput,
    Phase,
    SchedulerOutput,
    TokenLogprobs,
    TransferDone,
)
from seesaw.scheduler.policy import Observer, Policy
from seesaw.scheduler.request import Request
from seesaw.scheduler.residency import Residency
from seesaw.scheduler.stats import SchedulerStats
from seesaw.scheduler.step import StepBuilder

__all__ = ["Scheduler", "SchedulerConfig", "SchedulerStats", "TierConfig", "Update"]


@dataclass(slots=True)
class Update:
    """What a step changed: requests with new known tokens, and those among them that ended."""

    advanced: list[Request] = field(default_factory=list)
    finished: list[Request] = field(default_factory=list)


@dataclass(slots=True)
class _InFlight:
    output: SchedulerOutput
    requests: list[Request]
    positions: list[int]
    num_decode_rows: int
    written: list[int]
    """Blocks that others may share only in its lane until it is done."""


class Scheduler:
    """With a host tier, the workers must begin in phase "prefill"."""

    def __init__(self, config: SchedulerConfig, policy: Policy) -> None:
        self.config = config
        self.stats = SchedulerStats()
        self.counter: StepCounter | None = None
        """Is shown every step from when it is set; it takes time in each."""
        self._policy = policy
        self._observer = policy if isinstance(policy, Observer) else None
        self._residency = Residency(config)
        self._phase: Phase = "decode" if config.tier is None else "prefill"
        self._in_flight: dict[int, _InFlight] = {}
        self._next_step = 0
        self._num_unfinished = 0

    # -- requests --------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Queue a request that `validate` has accepted, under an id that is not in use."""
        assert request.limit > request.num_prompt, f"{request} has nothing to draw"
        self._residency.add(request)
        self._num_unfinished += 1

    def validate(self, num_prompt: int, sampling: SamplingParams) -> None:
        """Raise RequestError where such a request could never run. For any thread."""
        longest = self.config.max_model_len
        if num_prompt == 0:
            raise RequestError("the prompt is empty: expected at least one token.", param="prompt")
        if num_prompt >= longest:
            raise RequestError(
                f"the prompt has {num_prompt} tokens; with at least one token of answer, "
                f"max_model_len={longest} allows {longest - 1}. Shorten it or raise max_model_len.",
                param="prompt",
                code="context_length_exceeded",
            )
        answer = longest - num_prompt
        if sampling.max_tokens is not None:
            answer = min(answer, sampling.max_tokens)
        # The KV of the last token is never needed.
        need = -(-(num_prompt + answer - 1) // self.config.block_size)
        if need > self.config.num_blocks:
            raise RequestError(
                f"prompt and answer may need {need} KV blocks, there are {self.config.num_blocks}. "
                "Lower max_tokens or raise the memory budget.",
                param="max_tokens",
                code="context_length_exceeded",
            )
        if self.config.tier is not None:
            self._validate_prompt(num_prompt, self.config.tier, is_stored=answer > 1)

    def _validate_prompt(self, num_prompt: int, tier: TierConfig, *, is_stored: bool) -> None:
        """The prompt must fit where it is computed and where it waits."""
        need = -(-num_prompt // self.config.block_size)
        if need > tier.prefill_blocks:
            raise RequestError(
                f"the prompt needs {need} KV blocks, the pool for prompts has "
                f"{tier.prefill_blocks}. Shorten it or raise the memory budget.",
                param="prompt",
                code="context_length_exceeded",
            )
        need = -(-num_prompt // tier.tier_block_size)
        if is_stored and need > tier.tier_blocks:
            raise RequestError(
                f"the prompt needs {need} blocks of {tier.tier_block_size} tokens in the host "
                f"tier, which has {tier.tier_blocks}. Shorten it or raise host_kv_memory.",
                param="prompt",
                code="context_length_exceeded",
            )

    def finish(
        self, request_id: str, reason: FinishReason, stop_reason: int | str | None = None
    ) -> Request | None:
        """End a request from outside (abort, stop string). None where it has ended already or is
        unknown."""
        request = self._residency.requests.get(request_id)
        if request is None or request.finish_reason is not None:
            return None
        self._end(request, reason, stop_reason)
        self._residency.release_drained()
        return request

    @property
    def num_unfinished(self) -> int:
        """Requests that have not ended; ended ones may hold blocks until steps in flight are
        back."""
        return self._num_unfinished

    @property
    def num_running(self) -> int:
        """Requests that have been admitted: those in a device pool, in the tier or between."""
        at = self._residency
        moving = (at.storing, at.stored, at.loading, at.relaying)
        return sum(map(len, (at.prefilling, *moving, at.running, at.parked)))

    @property
    def num_waiting(self) -> int:
        return len(self._residency.waiting)

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def num_transfers(self) -> int:
        """Stores, loads and relays in flight."""
        return self._residency.num_transfers

    @property
    def phase(self) -> Phase:
        """Of the step planned last."""
        return self._phase

    @property
    def kv_usage(self) -> float:
        """Fraction of the decode pool's blocks held."""
        return self._usage("decode")

    @property
    def prefill_kv_usage(self) -> float:
        """Fraction of the prefill pool's blocks held; 0 without a tier."""
        return self._usage("prefill") if "prefill" in self._residency.pools else 0.0

    def _usage(self, phase: Phase) -> float:
        pool = self._residency.pools[phase]
        return 1 - pool.num_free / pool.num_blocks

    @property
    def occupancy(self) -> Occupancy:
        return Occupancy.of(self._residency)

    @property
    def num_tier_blocks_used(self) -> int:
        tier = self._residency.tier
        return 0 if tier is None else tier.num_used

    def describe(self) -> list[str]:
        """What it holds, in lines for people."""
        in_flight = [step.output for step in list(self._in_flight.values())]
        return describe(self._residency, in_flight)

    # -- steps -----------------------------------------------------------------------------------

    def schedule(self) -> SchedulerOutput | None:
        """The next step, or None: nothing can run or move now, or enough steps are in flight. Of
        several lanes that can take another step, the one with fewest in flight comes first."""
        if self.config.num_lanes == 1:
            busy = [len(self._in_flight)]
        else:
            lanes = [one.output.lane for one in self._in_flight.values()]
            busy = [lanes.count(lane) for lane in range(self.config.num_lanes)]
        for lane in sorted(range(len(busy)), key=busy.__getitem__):
            if busy[lane] and self._is_full(lane):
                continue
            output = self._plan(lane, busy)
            if output is not None:
                return output
        self._check_progress()
        return None

    def _plan(self, lane: int, busy: Sequence[int]) -> SchedulerOutput | None:
        """The next step of `lane`; `busy` are steps in flight by lane."""
        decoding = sum(
            one.num_decode_rows > 0 and one.output.phase == self._phase
            for one in self._in_flight.values()
        )
        output = SchedulerOutput(self._next_step, self._phase, lane=lane)
        step = StepBuilder(self._residency, output, decoding, busy)
        self._policy.plan(step)
        step.close()
        self.stats.num_preemptions = self._residency.num_preemptions
        self.stats.num_redecisions = self._residency.num_redecisions
        if not (output.rows or output.reshard or output.loads or output.stores):
            assert not output.appended_blocks, "a request was admitted and not run"
            return None
        at = self._residency
        output.finished, at.forget = at.forget, []
        output.preempted, at.preempted = at.preempted, []
        pool = at.pools[output.phase]
        if pool.poisonable:
            output.poison_blocks, pool.poisonable = pool.poisonable, []
        self._next_step += 1
        self._phase = output.phase
        self._in_flight[output.step_id] = _InFlight(
            output,
            step.drawing,
            [request.num_computed for request in step.drawing],
            step.num_decode_rows,
            step.written,
        )
        self._count(step, output)
        if self.counter is not None:
            self.counter.note(output, self._residency)
        if self.config.debug:
            self.check()
        return output

    def update(self, output: ModelOutput) -> Update:
        """Take in a finished step, in any order of steps. Raises KeyError for a step that is not in
        flight."""
        step = self._in_flight.pop(output.step_id)
        self._note_done(step)
        result = Update()
        advanced = result.advanced
        logprobs = output.logprobs
        for index, (request, position, token) in enumerate(
            zip(step.requests, step.positions, output.token_ids, strict=True)
        ):
            if request.finish_reason is not None:
                self.stats.num_discarded_tokens += 1
                continue
            entry = None if logprobs is None else logprobs[index]
            tokens = request.tokens
            if position != len(tokens):
                request.arrived[position] = (token, entry)
                continue
            self._append(request, token, entry)
            while request.arrived and request.finish_reason is None:
                later = request.arrived.pop(len(tokens), None)
                if later is None:
                    break
                self._append(request, *later)
            advanced.append(request)
            if request.finish_reason is not None:
                result.finished.append(request)
        if self._residency.draining:
            self._residency.release_drained()
        if self._observer is not None:
            self._observer.observe(step.output, output)
        if self.config.debug:
            self.check()
        return result

    def transferred(self, done: TransferDone) -> None:
        """Take in that a store, load or relay is complete on all ranks, in any order. Raises
        KeyError for a transfer that is not in flight."""
        self._residency.transferred(done.transfer_id)
        if self.config.debug:
            self.check()

    def check(self) -> None:
        """Raise AssertionError unless blocks, lists and counters agree."""
        at = self._residency
        at.check()
        most = self.config.max_num_seqs
        assert at.num_seats <= most, "too many requests run"
        assert len(at.prefilling) <= most, "too many prompts at once"

    # -- inside ----------------------------------------------------------------------------------

    def _note_done(self, step: _InFlight) -> None:
        lane = step.output.lane
        self._residency.oldest_steps[lane] = next(
            (one for one, other in self._in_flight.items() if other.output.lane == lane),
            self._next_step,
        )
        if step.written:
            self._residency.pools["decode"].was_written(step.written)

    def _is_full(self, lane: int) -> bool:
        """Enough steps are in flight. After a change of phase those of the phase before may outlast
        what the new one allows, so that the workers go over without a pause."""
        phases = [one.output.phase for one in self._in_flight.values() if one.output.lane == lane]
        most = self.config.most_in_flight
        return phases.count(self._phase) >= most(self._phase) or len(phases) >= max(
            map(most, {self._phase, *phases})
        )

    def _count(self, step: StepBuilder, output: SchedulerOutput) -> None:
        stats = self.stats
        num_tokens = step.budget - step.tokens_left
        stats.num_steps += 1
        stats.num_scheduled_tokens += num_tokens
        stats.num_computed_tokens += num_tokens - step.num_stopped_tokens
        stats.num_cached_tokens += step.num_shared_tokens
        stats.num_transitions += output.reshard
        if output.phase == "prefill":
            stats.num_prefill_tokens += num_tokens
            stats.num_prefill_steps += num_tokens > 0
        stats.num_decode_rows += step.num_decode_rows
        stats.num_decode_steps += step.num_decode_rows > 0
        if self._residency.tier is not None:
            stats.num_stored += len(output.stores)
            stats.num_stored_back += sum(store.phase == "decode" for store in output.stores)
            stats.num_stored_back -= step.num_parked
            stats.num_loaded += len(output.loads)
            stats.num_relayed += len(output.relays)
            stats.num_parked += step.num_parked
            stats.num_fetched += step.num_fetched
            stats.tier_peak_blocks = self._residency.tier.peak

    def _append(self, request: Request, token: int, logprobs: TokenLogprobs | None) -> None:
        tokens = request.tokens
        tokens.append(token)
        self._residency.mix.drew()
        if request.logprobs is not None:
            request.logprobs.append(logprobs)
        if (
            token in request.end_token_ids
            and len(tokens) - request.num_prompt >= request.sampling.min_tokens
        ):
            is_eos = not request.sampling.ignore_eos and token in request.eos_token_ids
            self._end(request, "stop", None if is_eos else token)
        elif len(tokens) >= request.limit:
            self._end(request, "length", None)

    def _end(self, request: Request, reason: FinishReason, stop_reason: int | str | None) -> None:
        request.finish_reason = reason
        request.stop_reason = stop_reason
        self._residency.mix.ended(request.num_prompt)
        self.stats.num_discarded_tokens += len(request.arrived)
        request.arrived.clear()
        self._num_unfinished -= 1
        self._residency.end(request)

    def _check_progress(self) -> None:
        """No step is right only where something is in flight or nothing is left to do."""
        at = self._residency
        if self._in_flight or at.num_transfers or not self.num_running + self.num_waiting:
            return
        raise AssertionError(
            f"the policy planned nothing although nothing is in flight: phase {self._phase}, "
            f"{at.pools[self._phase].num_free} of {at.pools[self._phase].num_blocks} blocks free, "
            f"{self.num_tier_blocks_used} tier blocks held, running {at.running[:4]}, "
            f"parked {at.parked[:4]}, prefilling {at.prefilling[:4]}, stored {at.stored[:4]}, "
            f"waiting {len(at.waiting)}, first {next(iter(at.waiting), None)}, "
            f"draining {at.draining[:4]}"
        )
