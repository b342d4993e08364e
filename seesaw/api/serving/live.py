"""An engine under a load: requests are added when they come, whatever it is doing.

An open loop: a thread of its own adds each request at its moment and never waits for an answer, so
that an engine which falls behind sees its queue grow, as behind a server. Latencies count from that
moment, not from when the thread got to it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any, Self

from seesaw.api.llm import LLM
from seesaw.api.serving.load import Load, check_lengths
from seesaw.api.serving.system import TILE, Progress, Served
from seesaw.engine.engine import Engine
from seesaw.errors import SeesawError
from seesaw.latency import Timing
from seesaw.outputs import RequestOutput
from seesaw.plan.workload import Lengths
from seesaw.sampling_params import SamplingParams
from seesaw.scheduler.counters import StepCounts

NUM_WARM_UP_PROMPTS = 4
WARM_UP_ANSWER = 8
"""Tokens of each, at most."""
PEAKS = ("tier_peak_blocks",)
"""Of the scheduler's counters: those that are of its life."""


class Live:
    """Loads the model when it is entered. `settings` are those of EngineConfig, `expected` what it
    is told of the job to come; `trace` names a file of what devices and driver do when."""

    def __init__(
        self,
        label: str,
        settings: Mapping[str, Any],
        expected: Mapping[str, Any],
        trace: str | None,
    ) -> None:
        self.label = label
        self._trace = trace
        self._settings = settings
        self._expected = expected
        self._undo = ExitStack()
        self._is_warm = False

    def __enter__(self) -> Self:
        llm = LLM(**self._settings, **self._expected, trace=self._trace)
        self._llm = self._undo.enter_context(llm)
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def about(self) -> dict[str, Any]:
        engine = self._llm.engine
        layouts, plan = engine.layouts, engine.memory_plan
        names = ("num_blocks", "block_size", "prefill_blocks", "tier_blocks", "tier_block_size",
                 "max_model_len")  # fmt: skip
        return {
            "policy_run": engine.config.resolve_policy(layouts.prefill != layouts.decode),
            "layouts": {"prefill": str(layouts.prefill), "decode": str(layouts.decode)},
            "memory": {name: getattr(plan, name) for name in names},
        }

    def serve(self, load: Load, progress: Progress) -> Served:
        engine = self._llm.engine
        lengths = [Lengths(one.prompt, one.answer) for one in load.requests]
        check_lengths(lengths, engine.max_model_len)
        if not self._is_warm:
            self._warm_up(load)
            self._is_warm = True
        prompts = load.prompts(engine.vocab_size)
        before, loads_before = asdict(engine.stats.scheduler), engine.stats.transfers.expert_loads
        engine.count_steps(TILE)
        feeder = _Feeder(engine, load, prompts)
        feeder.start()
        try:
            outputs = _answers(engine, feeder, len(prompts), progress)
        finally:
            feeder.stop()
        engine.settle()  # counters are of all that was begun
        stats = engine.stats
        counted = {
            name: value if name in PEAKS else value - before[name]
            for name, value in asdict(stats.scheduler).items()
        }
        assert stats.counts is not None, "steps were counted"
        served = _served(load, outputs, feeder.began_s, counted, stats.counts)
        if not engine.config.profile:
            return served
        return replace(served, expert_loads=stats.transfers.expert_loads - loads_before)

    def _warm_up(self, load: Load) -> None:
        few = load.requests[:NUM_WARM_UP_PROMPTS]
        rng = random.Random(f"{load.seed}/warm-up")
        size = self._llm.engine.vocab_size
        prompts = [[rng.randrange(size) for _ in range(one.prompt)] for one in few]
        sampling = [_sampling(min(one.answer, WARM_UP_ANSWER)) for one in few]
        self._llm.generate(prompts, sampling, use_tqdm=False)


class _Feeder(threading.Thread):
    """Adds the load's requests to the engine, each at its moment, named by their numbers."""

    def __init__(self, engine: Engine, load: Load, prompts: Sequence[list[int]]) -> None:
        super().__init__(name="seesaw-feeder", daemon=True)
        self._engine = engine
        self._load = load
        self._prompts = prompts
        self._stopped = threading.Event()
        self._came = threading.Event()
        self._error: BaseException | None = None
        self.began_s = time.perf_counter()

    def run(self) -> None:
        try:
            for number, (one, prompt) in enumerate(
                zip(self._load.requests, self._prompts, strict=True)
            ):
                moment_s = self.began_s + one.arrival_s
                while (left_s := moment_s - time.perf_counter()) > 0:
                    if self._stopped.wait(left_s):
                        return
                self._engine.add_request(
                    str(number),
                    prompt,
                    _sampling(one.answer),
                    arrival_s=moment_s,
                    times_tokens=True,
                )
                self._came.set()
        except BaseException as error:
            self._error = error
        finally:
            self._came.set()

    def wait(self) -> None:
        """For the next request, if none has come since the last call. Raises what ended the thread
        before its time."""
        self._came.wait()
        self._came.clear()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def _answers(
    engine: Engine, feeder: _Feeder, count: int, progress: Progress
) -> dict[int, RequestOutput]:
    """Steps the engine until that many requests have ended; by their numbers."""
    outputs: dict[int, RequestOutput] = {}
    while len(outputs) < count:
        if not engine.has_unfinished_requests():
            feeder.wait()
            continue
        ended = [output for output in engine.step() if output.finished]
        if ended:
            outputs.update((int(output.request_id), output) for output in ended)
            progress(len(outputs), count)
    return outputs


def _served(
    load: Load,
    outputs: Mapping[int, RequestOutput],
    began_s: float,
    scheduler: Mapping[str, int],
    counts: StepCounts,
) -> Served:
    """Raises SeesawError where an answer is not as asked for: figures would be wrong."""
    timings, answers = [], []
    for number, asked in enumerate(load.requests):
        output = outputs[number]
        metrics, answer = output.metrics, output.outputs[0]
        assert metrics is not None, "an engine's answer has metrics"
        assert metrics.scheduled_s is not None, "an answer of a request that never began"
        if answer.token_s is None or len(answer.token_ids) != asked.answer:
            raise SeesawError(
                f"bench: the answer to request {number} has {len(answer.token_ids)} tokens, "
                f"expected {asked.answer}: the figures would be wrong."
            )
        timings.append(
            Timing.of(
                metrics.arrival_s - began_s,
                metrics.scheduled_s - began_s,
                [known_s - began_s for known_s in answer.token_s],
            )
        )
        answers.append(answer.token_ids)
    return Served(
        timings=timings,
        input_tokens=sum(one.prompt for one in load.requests),
        output_tokens=sum(map(len, answers)),
        scheduler=scheduler,
        counts=counts,
        answers=answers,
    )


def _sampling(answer: int) -> SamplingParams:
    return SamplingParams(temperature=0, ignore_eos=True, max_tokens=answer)
