"""The engine: joins scheduler and executor, and is the door for those who embed seesaw.

All of it may be called from any thread; steps are taken one at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from seesaw import envs
from seesaw.config import EngineConfig
from seesaw.engine.executor import Executor
from seesaw.engine.loader import load_executor
from seesaw.engine.memory import MemoryPlan
from seesaw.engine.output_processor import OutputProcessor
from seesaw.engine.prompts import EncodedPrompt, Prompt, PromptEncoder
from seesaw.errors import EngineDeadError, RequestError
from seesaw.log import get_logger
from seesaw.outputs import CompletionOutput, RequestMetrics, RequestOutput
from seesaw.sampling_params import SamplingParams
from seesaw.scheduler import policies
from seesaw.scheduler.output import ModelOutput
from seesaw.scheduler.request import Request
from seesaw.scheduler.scheduler import Scheduler, SchedulerConfig, SchedulerStats
from seesaw.weights.checkpoint import open_checkpoint

logger = get_logger(__name__)

STEPS_IN_FLIGHT = 2
"""One runs while the next waits for it: one device is never idle between steps."""


@dataclass(slots=True)
class _Arrival:
    request_id: str
    prompt: str | None
    requests: list[Request]
    stream: bool
    arrival_s: float


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Where the engine stands now; `scheduler` counts over its life."""

    num_running: int
    num_waiting: int
    kv_usage: float
    scheduler: SchedulerStats


class Engine:
    """Loads a model and answers requests.

    >>> engine = Engine(EngineConfig(model="my-model"))
    >>> engine.add_request("a", "The capital of France is", SamplingParams(max_tokens=8))
    >>> while engine.has_unfinished_requests():
    ...     for output in engine.step():
    ...         print(output.request_id, output.outputs[0].text)
    """

    def __init__(
        self, config: EngineConfig, *, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Raises ConfigError before any weight is read. `progress(bytes read, bytes in all)`."""
        policy = policies.make(config.policy, config.policy_options)
        steps_in_flight = 1 if envs.disable_overlap() else STEPS_IN_FLIGHT
        debug = envs.debug_blocks()
        checkpoint = open_checkpoint(config)
        self.config = config
        self._encoder = PromptEncoder(config, checkpoint)
        if defaults := self._encoder.default_sampling:
            told = ", ".join(f"{name}={value}" for name, value in defaults.items())
            logger.info("sampling defaults of the model: %s", told)
        self.memory_plan: MemoryPlan
        self._executor: Executor
        self._executor, self.memory_plan = load_executor(config, checkpoint, progress)
        self._scheduler = Scheduler(
            SchedulerConfig(
                num_blocks=self.memory_plan.num_blocks,
                block_size=config.block_size,
                num_layers=checkpoint.spec.num_hidden_layers,
                max_model_len=self.memory_plan.max_model_len,
                max_num_seqs=config.max_num_seqs,
                max_num_batched_tokens=config.max_num_batched_tokens,
                max_steps_in_flight=steps_in_flight,
                enable_prefix_caching=config.enable_prefix_caching,
                debug=debug,
            ),
            policy,
        )
        self._processor = OutputProcessor(self._encoder.tokenizer)
        self._stepping = threading.Lock()
        # Guards what other threads touch: the inbox, the ids in use and the aborts.
        self._lock = threading.Lock()
        self._arrivals: list[_Arrival] = []
        self._aborts: list[str] = []
        self._live: set[str] = set()
        self._serial = itertools.count()
        self._ready: list[RequestOutput] = []  # answers of zero tokens
        self._dead: EngineDeadError | None = None
        self._closed = False

    # -- the model --------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        return self._encoder.tokenizer

    @property
    def max_model_len(self) -> int:
        return self.memory_plan.max_model_len

    @property
    def max_num_seqs(self) -> int:
        return self.config.max_num_seqs

    @property
    def default_sampling(self) -> Mapping[str, Any]:
        return self._encoder.default_sampling

    @property
    def vocab_size(self) -> int:
        return self._encoder.vocab_size

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return self._encoder.eos_token_ids

    @property
    def stats(self) -> EngineStats:
        scheduler = self._scheduler
        return EngineStats(
            scheduler.num_running, scheduler.num_waiting, scheduler.kv_usage, scheduler.stats
        )

    # -- requests ---------------------------------------------------------------------------------

    def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        sampling: SamplingParams | None = None,
        *,
        stream: bool = False,
    ) -> None:
        """Queue a request; its outputs come from `step`, with `stream` also while it grows.

        `sampling=None` takes the model's defaults. Raises RequestError if it can never be served,
        EngineDeadError if the engine cannot go on.
        """
        self._check_usable()
        sampling = sampling or SamplingParams.from_dict(self.default_sampling)
        encoded = self.check_request(prompt, sampling)
        requests = [
            Request(
                # Unique for good: a caller may use an id again while the scheduler still waits for
                # steps in flight of its first use.
                f"{request_id}#{next(self._serial)}",
                encoded.token_ids,
                sampling,
                seed=self._seed(request_id, sampling, index),
                eos_token_ids=self._encoder.eos_token_ids,
                max_model_len=self.max_model_len,
            )
            for index in range(sampling.n)
        ]
        with self._lock:
            if request_id in self._live:
                raise RequestError(
                    f"request id {request_id!r} is in use. Give each request an id of its own.",
                    param="request_id",
                    code="duplicate_id",
                )
            if sampling.max_tokens == 0:
                self._ready.append(_empty_answers(request_id, encoded, sampling.n))
                return
            self._live.add(request_id)
            self._arrivals.append(_Arrival(request_id, encoded.text, requests, stream, time.time()))

    def check_request(self, prompt: Prompt, sampling: SamplingParams | None) -> EncodedPrompt:
        """The prompt as `add_request` would take it. Raises RequestError if it can never be
        served."""
        sampling = sampling or SamplingParams.from_dict(self.default_sampling)
        encoded = self._encoder.encode(prompt)
        self._encoder.check_sampling(sampling)
        self._scheduler.validate(len(encoded.token_ids), sampling)
        return encoded

    def abort_request(self, request_id: str) -> None:
        """End a request; `step` returns what it has, with finish_reason `abort`. Unknown ids are
        ignored."""
        with self._lock:
            if request_id in self._live:
                self._aborts.append(request_id)

    def has_unfinished_requests(self) -> bool:
        """True while `step` has something to do or to return."""
        with self._lock:
            return bool(self._live or self._ready)

    # -- steps ------------------------------------------------------------------------------------

    def step(self) -> list[RequestOutput]:
        """Advance by one finished step; return requests that ended, and streaming ones that grew.

        Raises EngineDeadError where a step failed: no request can be answered any more. A
        KeyboardInterrupt while the device works harms nothing: the next call goes on.
        """
        with self._stepping:
            return self._step()

    def _step(self) -> list[RequestOutput]:
        self._check_usable()
        with self._no_way_back():
            outputs = self._take_in()
            self._issue()
        done = self._collect(outputs) if self._scheduler.num_in_flight else None
        with self._no_way_back():
            changed: list[Request] = []
            if done is not None:
                changed = self._scheduler.update(done).advanced
                # Before texts are decoded, so that the device has work meanwhile.
                self._issue()
            outputs += self._processor.process(changed, self._scheduler.finish)
            finished = {output.request_id for output in outputs if output.finished}
            with self._lock:
                self._live -= finished
                # Such an abort came too late, and the id may be used again before the next step.
                self._aborts = [aborted for aborted in self._aborts if aborted not in finished]
        return outputs

    @contextlib.contextmanager
    def _no_way_back(self) -> Iterator[None]:
        """For what scheduler and worker must agree on: left halfway (a policy or seesaw failed, or
        an interruption), the engine cannot go on."""
        try:
            yield
        except Exception as error:
            self._dead = EngineDeadError(f"a step failed: {type(error).__name__}: {error}")
            raise self._dead from error
        except BaseException as error:
            self._dead = EngineDeadError(f"a step was cut off by {type(error).__name__}")
            raise

    def _collect(self, outputs: list[RequestOutput]) -> ModelOutput:
        """What a step drew. Where there is none, `outputs` are kept for the next call."""
        try:
            return self._executor.collect()
        except BaseException as error:
            if isinstance(error, EngineDeadError):
                self._dead = error
            with self._lock:
                self._ready = outputs + self._ready
            raise

    def _take_in(self) -> list[RequestOutput]:
        """Requests and aborts of other threads; outputs of those that ended by it."""
        with self._lock:
            arrivals, self._arrivals = self._arrivals, []
            aborts, self._aborts = self._aborts, []
            outputs, self._ready = self._ready, []
        for arrival in arrivals:
            for request in arrival.requests:
                self._scheduler.add(request)
            self._processor.add(
                arrival.request_id,
                arrival.prompt,
                arrival.requests,
                stream=arrival.stream,
                arrival_s=arrival.arrival_s,
            )
        finish = self._scheduler.finish
        running = [one for request_id in aborts for one in self._processor.running(request_id)]
        ended = [done for one in running if (done := finish(one, "abort")) is not None]
        return outputs + self._processor.process(ended, finish)

    def _issue(self) -> None:
        while (step := self._scheduler.schedule()) is not None:
            self._executor.submit(step)

    # -- life -------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """Stop the worker and free weights and KV. Safe to call twice and after a failure."""
        self._closed = True
        executor = self.__dict__.get("_executor")
        if executor is not None:
            executor.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.shutdown()

    def _check_usable(self) -> None:
        if self._closed:
            raise EngineDeadError("the engine was shut down. Make a new one.")
        if self._dead is not None:
            raise EngineDeadError(f"the engine is dead: {self._dead}") from self._dead

    def _seed(self, request_id: str, sampling: SamplingParams, index: int) -> int:
        """The same for the same engine seed and request id, whatever else runs and in what
        order."""
        own = sampling.seed if sampling.seed is not None else f"{self.config.seed}/{request_id}"
        digest = hashlib.blake2b(f"{own}/{index}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")


def _empty_answers(request_id: str, prompt: EncodedPrompt, n: int) -> RequestOutput:
    now = time.time()
    return RequestOutput(
        request_id,
        prompt.text,
        prompt.token_ids,
        [CompletionOutput(index, "", [], finish_reason="length") for index in range(n)],
        finished=True,
        metrics=RequestMetrics(now, finished_s=now),
    )
