"""Decides what each step computes. Standard library only, deterministic; the same object runs in
engine and tests.

`schedule()` plans a step from what is known; `update()` takes in what a step drew. Several steps
may be in flight, so a plan counts on tokens that are still being drawn, and what was computed past
a stop is dropped when it arrives.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from seesaw.errors import RequestError
from seesaw.outputs import FinishReason
from seesaw.sampling_params import SamplingParams
from seesaw.scheduler.blocks import ROOT, BlockPool
from seesaw.scheduler.output import ModelOutput, SchedulerOutput, TokenLogprobs
from seesaw.scheduler.request import Request, RequestStatus
from seesaw.scheduler.step import Policy, StepBuilder, register_full_blocks


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """Budgets that every step keeps. Tokens and blocks are counts."""

    num_blocks: int
    block_size: int
    num_layers: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_steps_in_flight: int = 2
    enable_prefix_caching: bool = True
    debug: bool = False
    """Check the block accounting after every step and list freed blocks for poisoning."""


@dataclass(slots=True)
class SchedulerStats:
    """Counters over the scheduler's life."""

    num_steps: int = 0
    num_preemptions: int = 0
    num_scheduled_tokens: int = 0
    num_discarded_tokens: int = 0
    """Drawn past a stop, or for an aborted request."""
    num_cached_tokens: int = 0
    """Prompt tokens whose KV was shared instead of computed."""


@dataclass(slots=True)
class Update:
    """What a step changed: requests with new known tokens, and those among them that ended."""

    advanced: list[Request] = field(default_factory=list)
    finished: list[Request] = field(default_factory=list)


@dataclass(slots=True)
class _InFlight:
    requests: list[Request]
    positions: list[int]


class Scheduler:
    def __init__(self, config: SchedulerConfig, policy: Policy) -> None:
        self.config = config
        self.stats = SchedulerStats()
        self._policy = policy
        self._pool = BlockPool(
            config.num_blocks, config.block_size, enable_caching=config.enable_prefix_caching
        )
        if config.debug:
            self._pool.poisonable = []
        self._requests: dict[str, Request] = {}
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._draining: list[Request] = []
        self._in_flight: dict[int, _InFlight] = {}
        self._forget: list[str] = []  # workers are told with the next step
        self._preempted: list[str] = []
        self._next_step = 0
        self._num_unfinished = 0

    # -- requests --------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Queue a request that `validate` has accepted, under an id that is not in use."""
        assert request.request_id not in self._requests, f"{request} is known already"
        assert request.limit > request.num_prompt, f"{request} has nothing to draw"
        self._requests[request.request_id] = request
        self._num_unfinished += 1
        self._waiting.append(request)

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

    def finish(
        self, request_id: str, reason: FinishReason, stop_reason: int | str | None = None
    ) -> Request | None:
        """End a request from outside (abort, stop string). None where it has ended already or is
        unknown."""
        request = self._requests.get(request_id)
        if request is None or request.finish_reason is not None:
            return None
        self._end(request, reason, stop_reason)
        self._release_drained()
        return request

    @property
    def num_unfinished(self) -> int:
        """Requests that have not ended; ended ones may hold blocks until steps in flight are
        back."""
        return self._num_unfinished

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def kv_usage(self) -> float:
        """Fraction of blocks held."""
        return 1 - self._pool.num_free / self._pool.num_blocks

    # -- steps -----------------------------------------------------------------------------------

    def schedule(self) -> SchedulerOutput | None:
        """The next step, or None: nothing can run now, or enough steps are in flight."""
        if len(self._in_flight) >= self.config.max_steps_in_flight:
            return None
        output = SchedulerOutput(self._next_step)
        step = StepBuilder(
            self.config, self._pool, self._running, self._waiting, output, self._preempt
        )
        step.blocks_draining = sum(len(request.blocks) for request in self._draining)
        self._policy.plan(step)
        if not output.lanes[0].rows:
            self._check_progress(output)
            return None
        output.finished, self._forget = self._forget, []
        output.preempted, self._preempted = self._preempted, []
        if self._pool.poisonable:
            output.poison_blocks, self._pool.poisonable = self._pool.poisonable, []
        self._next_step += 1
        self._in_flight[output.step_id] = _InFlight(
            step.drawing, [request.num_computed for request in step.drawing]
        )
        self.stats.num_steps += 1
        self.stats.num_scheduled_tokens += self.config.max_num_batched_tokens - step.tokens_left
        self.stats.num_cached_tokens += step.num_shared_tokens
        if self.config.debug:
            self.check()
        return output

    def update(self, output: ModelOutput) -> Update:
        """Take in a finished step, in any order of steps. Raises KeyError for a step that is not in
        flight."""
        step = self._in_flight.pop(output.step_id)
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
        if self._draining:
            self._release_drained()
        if self.config.debug:
            self.check()
        return result

    def check(self) -> None:
        """Raise AssertionError unless blocks, lists and counters agree."""
        self._pool.check(request.blocks for request in self._requests.values())
        assert len(self._running) <= self.config.max_num_seqs, "too many requests run"
        for request in self._requests.values():
            assert request.table_room == len(request.blocks) * self.config.block_size, request
            assert request.num_computed <= max(request.table_room, 0), request
        held = {id(r) for r in self._requests.values()}
        lists = [*self._running, *self._waiting, *self._draining]
        assert len(lists) == len(held), "a request is in no or in two lists"
        assert {id(r) for r in lists} == held, "a list holds a forgotten request"

    # -- inside ----------------------------------------------------------------------------------

    def _append(self, request: Request, token: int, logprobs: TokenLogprobs | None) -> None:
        tokens = request.tokens
        tokens.append(token)
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
        self.stats.num_discarded_tokens += len(request.arrived)
        request.arrived.clear()
        self._num_unfinished -= 1
        if request.status is RequestStatus.RUNNING:
            self._running.remove(request)
        elif request.status is RequestStatus.WAITING:
            self._waiting.remove(request)
        if request.status is not RequestStatus.DRAINING:
            request.status = RequestStatus.DRAINING
            self._draining.append(request)

    def _preempt(self, request: Request) -> int:
        """Blocks that are free at once; the others come back with the steps in flight."""
        self.stats.num_preemptions += 1
        request.num_preemptions += 1
        self._running.remove(request)
        request.status = RequestStatus.DRAINING
        num_blocks = len(request.blocks)
        self._draining.append(request)
        self._release_drained()
        return num_blocks - len(request.blocks)

    def _release_drained(self) -> None:
        """Take back the blocks of ended and preempted requests that no step in flight uses."""
        oldest = next(iter(self._in_flight), self._next_step)
        still: list[Request] = []
        for request in self._draining:
            if request.last_step >= oldest:
                still.append(request)
                continue
            self._take_back(request)
        self._draining[:] = still

    def _take_back(self, request: Request) -> None:
        if request.blocks:
            register_full_blocks(self._pool, request)
            self._pool.release(request.blocks)
        request.blocks = []
        request.table_room = request.num_computed = request.num_registered = 0
        request.content = ROOT
        if request.finish_reason is None:
            assert request.num_tokens == len(request.tokens), (
                f"{request} drained with pending tokens"
            )
            request.status = RequestStatus.WAITING
            self._waiting.appendleft(request)
            self._preempted.append(request.request_id)
            return
        request.status = RequestStatus.FINISHED
        del self._requests[request.request_id]
        if request.request_id in self._preempted:
            # It yielded and was aborted between two steps: workers hear that it ended, no more.
            self._preempted.remove(request.request_id)
        if request.was_sent:
            self._forget.append(request.request_id)

    def _check_progress(self, output: SchedulerOutput) -> None:
        """An empty step is right only where something is in flight or nothing is left to do."""
        assert not output.appended_blocks, "a request was admitted and not run"
        if self._in_flight or not (self._running or self._waiting):
            return
        raise AssertionError(
            f"the policy planned nothing although nothing is in flight: {self._pool.num_free} of "
            f"{self._pool.num_blocks} blocks free, running {self._running[:4]}, "
            f"waiting {len(self._waiting)}, first {next(iter(self._waiting), None)}, "
            f"draining {self._draining[:4]}"
        )
