"""The engine: requests in, answers out, and the door for those who embed seesaw.

All of it may be called from any thread; steps are taken one at a time.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from seesaw.config import EngineConfig
from seesaw.engine import dump
from seesaw.engine.arrivals import Arrived, check_arrival, check_id, draw_seed, empty_answers
from seesaw.engine.loader import load_replicas
from seesaw.engine.output_processor import OutputProcessor
from seesaw.engine.profile import StepProfile, describe
from seesaw.engine.prompts import EncodedPrompt, Prompt, PromptEncoder
from seesaw.engine.replicas import Event, Replicas, StepObserver
from seesaw.engine.stats import EngineStats
from seesaw.engine.tracing import start_trace
from seesaw.errors import EngineDeadError, RequestError
from seesaw.log import get_logger
from seesaw.outputs import EngineStatus, RequestOutput
from seesaw.plan.choice import LayoutChoice
from seesaw.plan.memory import MemoryPlan
from seesaw.sampling_params import SamplingParams
from seesaw.scheduler.request import Request
from seesaw.scheduler.scheduler import SchedulerStats
from seesaw.trace import TraceWriter
from seesaw.weights.checkpoint import Checkpoint, open_checkpoint

if TYPE_CHECKING:
    from seesaw.engine.ranks import Ranks

logger = get_logger(__name__)


QUEUED_PER_SEQ = 2


class Engine:
    """Loads a model and answers requests.

    >>> engine = Engine(EngineConfig(model="my-model"))
    >>> engine.add_request("a", "The capital of France is", SamplingParams(max_tokens=8))
    >>> while engine.has_unfinished_requests():
    ...     for output in engine.step():
    ...         print(output.request_id, output.outputs[0].text)
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        progress: Callable[[int, int], None] | None = None,
        checkpoint: Checkpoint | None = None,
        ranks: Ranks | None = None,
        trace: TraceWriter | None = None,
    ) -> None:
        """Raises ConfigError before any weight is read. `progress(bytes read, bytes in all)`.

        `checkpoint`: what `open_checkpoint(config)` returned, where the caller has done that.
        `ranks`: running worker processes to use, as many as the layouts have ranks; they outlive
        the engine unless it fails. `trace` is told what ranks and driver do when, by
        `time.perf_counter()`; it stays its maker's to close.
        """
        checkpoint = checkpoint or open_checkpoint(config)
        self.config = config
        self.spec = checkpoint.spec
        self._encoder = PromptEncoder(config, checkpoint)
        if defaults := self._encoder.default_sampling:
            told = ", ".join(f"{name}={value}" for name, value in defaults.items())
            logger.info("sampling defaults of the model: %s", told)
        self._stepping = threading.RLock()
        loaded = load_replicas(config, checkpoint, progress, ranks, trace=trace is not None)
        self._replicas: Replicas = loaded.replicas
        self.memory_plan: MemoryPlan = loaded.memory_plan
        self.layouts: LayoutChoice = loaded.layouts
        policy = config.resolve_policy(self.layouts.prefill != self.layouts.decode)
        self._trace = None if trace is None else start_trace(trace, loaded, checkpoint, policy)
        self._processor = OutputProcessor(self._encoder.tokenizer)
        # Guards what other threads touch: the inbox, the ids in use and the aborts.
        self._lock = threading.Lock()
        self._arrivals: list[Arrived] = []
        self._aborts: list[str] = []
        self._live: set[str] = set()
        self._serial = itertools.count()
        self._ready: list[RequestOutput] = []  # answers of zero tokens
        self._dead: EngineDeadError | None = None
        self._closed = False
        dump.register(self)

    # -- the model --------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        return self._encoder.tokenizer

    @property
    def max_model_len(self) -> int:
        return self.memory_plan.max_model_len

    @property
    def max_num_queued(self) -> int:
        """Unfinished requests that keep the engine busy: as many again wait as can run, and where
        there is a host tier enough prompts to fill it, since a phase that begins with fewer ends
        early and costs a transition."""
        plan = self.memory_plan
        replicas = len(self._replicas.schedulers)
        return replicas * (QUEUED_PER_SEQ * self.config.max_num_seqs + plan.tier_blocks)

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
        status = self.status
        return EngineStats(
            status.num_begun,
            status.num_waiting,
            status.device_share,
            SchedulerStats.total(one.stats for one in self._replicas.schedulers),
            self._replicas.movement,
            self._replicas.step_counts,
        )

    @property
    def status(self) -> EngineStatus:
        """Cheap: for those who look often. For any thread."""
        return self._replicas.status(self.layouts)

    def observe_steps(self, observer: StepObserver | None) -> None:
        """Call `observer` with each step from now on, once it came back; None = nobody."""
        self._replicas.observer = observer

    def count_steps(self, tile: int = 128) -> None:
        """Count what steps ask of the model from now on, for `stats`. It takes some time in each.
        `tile`: rows in which matrix products are computed."""
        self._replicas.count_steps(tile)

    def take_profile(self) -> StepProfile:
        """Where the time of steps went since the last call; empty without `profile=True`. What is
        left when the engine is shut down is logged."""
        return self._replicas.take_profile()

    # -- requests ---------------------------------------------------------------------------------

    def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        sampling: SamplingParams | None = None,
        *,
        stream: bool = False,
        arrival_s: float | None = None,
        times_tokens: bool = False,
    ) -> None:
        """Queue a request; its outputs come from `step`, with `stream` also while it grows.

        `sampling=None` takes the model's defaults. `arrival_s`: when it came, in seconds of
        `time.perf_counter()`, where that was before now; its metrics count from then, and policies
        that go by age. `times_tokens`: its answers say when each token was known. Raises
        RequestError if it can never be served, EngineDeadError if the engine cannot go on.
        """
        self._check_usable()
        check_id(request_id)
        came_s = check_arrival(arrival_s, time.perf_counter())
        sampling = sampling or SamplingParams.from_dict(self.default_sampling)
        encoded = self.check_request(prompt, sampling)
        requests = [
            Request(
                # Unique for good: a caller may use an id again while the scheduler still waits for
                # steps in flight of its first use.
                f"{request_id}#{next(self._serial)}",
                encoded.token_ids,
                sampling,
                seed=draw_seed(self.config.seed, request_id, sampling, index),
                eos_token_ids=self._encoder.eos_token_ids,
                max_model_len=self.max_model_len,
                arrival_s=came_s,
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
                self._ready.append(
                    empty_answers(request_id, encoded, sampling.n, came_s, times_tokens)
                )
                return
            self._live.add(request_id)
            self._arrivals.append(Arrived(request_id, encoded.text, requests, stream, times_tokens))

    def check_request(self, prompt: Prompt, sampling: SamplingParams | None) -> EncodedPrompt:
        """The prompt as `add_request` would take it. Raises RequestError if it can never be
        served."""
        sampling = sampling or SamplingParams.from_dict(self.default_sampling)
        encoded = self._encoder.encode(prompt)
        self._encoder.check_sampling(sampling)
        self._replicas.validate(len(encoded.token_ids), sampling)
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
            if not self._replicas.num_in_flight:
                self._replicas.resume_clock()
            self._issue()
        done = self._collect(outputs) if self._replicas.num_in_flight else None
        with self._no_way_back():
            changed: list[Request] = []
            if done is not None:
                changed = self._replicas.update(done)
                # What came while the devices worked need not wait for a step more.
                outputs += self._take_in()
                # Before texts are decoded, so that the devices have work meanwhile.
                self._issue()
            began_s = time.perf_counter()
            outputs += self._processor.process(changed, self._replicas.finish)
            if self._trace is not None and changed:
                self._trace.worked("texts", began_s)
            finished = {output.request_id for output in outputs if output.finished}
            with self._lock:
                self._live -= finished
                # Such an abort came too late, and the id may be used again before the next step.
                self._aborts = [aborted for aborted in self._aborts if aborted not in finished]
        return outputs

    def _issue(self) -> None:
        """Hand over all steps that can be planned now."""
        if begun := self._replicas.issue():
            self._processor.begun(begun)

    def settle(self) -> None:
        """Take in what steps and copies of ended requests are still in flight, so that `stats`
        counts all that was begun. For when no request is left. Raises EngineDeadError."""
        with self._stepping:
            while self._replicas.num_in_flight:
                done = self._collect([])
                with self._no_way_back():
                    self._replicas.update(done)

    @contextlib.contextmanager
    def _no_way_back(self) -> Iterator[None]:
        """For what scheduler and worker must agree on: left halfway (a policy or seesaw failed, or
        an interruption), the engine cannot go on."""
        try:
            yield
        except Exception as error:
            self._dead = self._died(f"a step failed: {type(error).__name__}: {error}", error)
            raise self._dead from error
        except BaseException as error:
            self._dead = EngineDeadError(f"a step was cut off by {type(error).__name__}")
            raise

    def _collect(self, outputs: list[RequestOutput]) -> Event:
        """What came back. Where nothing does, `outputs` are kept for the next call."""
        try:
            return self._replicas.collect()
        except BaseException as error:
            with self._lock:
                self._ready = outputs + self._ready
            if not isinstance(error, EngineDeadError):
                raise
            self._dead = self._died(str(error), error.__cause__)
            raise self._dead from error.__cause__

    def _take_in(self) -> list[RequestOutput]:
        """Requests and aborts of other threads; outputs of those that ended by it."""
        with self._lock:
            arrivals, self._arrivals = self._arrivals, []
            aborts, self._aborts = self._aborts, []
            outputs, self._ready = self._ready, []
        for arrival in arrivals:
            for request in arrival.requests:
                self._replicas.add(request)
            self._processor.add(
                arrival.request_id,
                arrival.prompt,
                arrival.requests,
                stream=arrival.stream,
                times_tokens=arrival.times_tokens,
            )
        for aborted in aborts:
            self._note("abort", request=aborted)
        finish = self._replicas.finish
        running = [one for request_id in aborts for one in self._processor.running(request_id)]
        ended = [done for one in running if (done := finish(one, "abort")) is not None]
        return outputs + self._processor.process(ended, finish)

    def _note(self, what: str, **args: str) -> None:
        if self._trace is not None:
            self._trace.happened(what, **args)

    def _died(self, what: str, cause: BaseException | None) -> EngineDeadError:
        self._note("error", message=what)
        path = dump.write(what, self._replicas.describe, cause)
        told = "" if path is None else f" What the engine was doing is in {path}"
        return EngineDeadError(f"{what.rstrip('.')}.{told}")

    def dump(self) -> str | None:
        """Write what the engine is doing now (requests by state, blocks held, what each rank is at)
        to a file of its own, whose path is returned; None where that is refused. For any thread."""
        return dump.write("asked for", self._replicas.describe)

    # -- life -------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """Stop the workers and free weights and KV; a step that another thread takes is waited
        for. Safe to call twice and after a failure."""
        self._closed = True
        dump.forget(self)
        replicas = self.__dict__.get("_replicas")
        if replicas is None:
            return
        with self._stepping:
            replicas.shutdown()
            if self._trace is not None:
                self._trace.close()
                self._trace = None
            if (profile := replicas.take_profile()).kinds:
                logger.info("time of steps by part:\n%s", describe(profile.figures()))

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
