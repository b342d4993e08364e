"""Runs the pending rows of a journal through an engine, and survives the engine's crashes.

Works in passes over the input: first all rows, then those that were in flight in a crash, and those
of two crashes one at a time. Rows of a crash simply stay pending until the next pass, so nothing
but the rows in flight is ever held. Owns the engine.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from seesaw.batch.body import BatchRequest
from seesaw.batch.journal import ANSWERED, FAILED, Finished, Journal, PendingRow
from seesaw.batch.options import JobOptions
from seesaw.batch.pending import EncodingFailed, encode, read_pending
from seesaw.batch.progress import Phase, Progress, Reporter, Speedometer
from seesaw.batch.protocol import BatchEngine, EngineFactory, PromptEncoder
from seesaw.batch.reader import Row
from seesaw.batch.response import answer_line, stable_id
from seesaw.batch.scan import failed
from seesaw.batch.signals import Interrupts
from seesaw.batch.writer import Recorder
from seesaw.errors import EngineDeadError, JobError, RequestError, SeesawError
from seesaw.log import get_logger
from seesaw.outputs import RequestOutput

CRASHES_TO_SUSPECT = 2
PROGRESS_S = 0.1
_MANY = 2**62
log = get_logger(__name__)


@dataclass(slots=True)
class RunStats:
    """This run's numbers; rows by outcome, seconds of wall time."""

    answered: int = 0
    failed: int = 0
    restarts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    engine_start_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Running:
    row: PendingRow
    request: BatchRequest


class Runner:
    def __init__(
        self,
        options: JobOptions,
        journal: Journal,
        recorder: Recorder,
        encoder: PromptEncoder,
        engine_factory: EngineFactory,
        *,
        check: Callable[[Row], BatchRequest],
        fingerprint: str,
        interrupts: Interrupts,
        reporter: Reporter,
        clock: Callable[[], float],
    ):
        self.stats = RunStats()
        self._options = options
        self._journal = journal
        self._recorder = recorder
        self._encoder = encoder
        self._factory = engine_factory
        self._check = check
        self._fingerprint = fingerprint
        self._interrupts = interrupts
        self._reporter = reporter
        self._clock = clock
        self._engine: BatchEngine | None = None
        self._crash: Exception | None = None
        self._num_crashes = 0
        self._most_running = 0  # known from the first engine on
        self._running: dict[str, _Running] = {}
        self._counts = journal.counts()
        self._started_s = time.monotonic()
        self._reported_s = 0.0
        self._speed = Speedometer()

    def run(self) -> None:
        """Until no row within the limit is pending or a signal came. Raises JobError after too many
        crashes or, with fail_fast, at a failed row.
        """
        last_line = _MANY
        if self._options.limit is not None:
            last_line = self._journal.nth_pending_line(self._options.limit) or _MANY
        try:
            while not self._interrupts.stop:
                self._recorder.flush()
                if self._journal.has_pending(last_line, 0, CRASHES_TO_SUSPECT):
                    self._pass(last_line, 0, CRASHES_TO_SUSPECT)
                elif self._journal.has_pending(last_line, CRASHES_TO_SUSPECT, _MANY):
                    self._pass(last_line, CRASHES_TO_SUSPECT, _MANY)
                else:
                    return
        finally:
            self._shut_down()

    def _pass(self, last_line: int, crashes_from: int, crashes_to: int) -> None:
        """Each row of this kind once: it is answered, failed, or was in flight in a crash."""
        alone = crashes_from == CRASHES_TO_SUSPECT
        rows = read_pending(
            self._options.paths.input, self._journal.pending(last_line, crashes_from, crashes_to)
        )
        more = True
        while (more or self._running) and not self._interrupts.stop:
            self._report("run")
            most = 1 if alone else self._most_running or self._start_engine()
            while more and len(self._running) < most and not self._interrupts.stop:
                entry = next(rows, None)
                more = entry is not None
                if entry is not None:
                    self._admit(*entry)
                    self._report("run")
            if self._running and not self._interrupts.stop:
                self._step()

    def _admit(self, known: PendingRow, row: Row) -> None:
        try:
            request = self._check(row)
            token_ids = encode(self._encoder, request)
        except EncodingFailed as error:
            self._fail(known, error, status=500)
            return
        except RequestError as error:
            self._fail(known, error)
            return
        engine = self._live_engine()
        self._running[known.custom_id] = _Running(known, request)
        try:
            engine.add_request(known.custom_id, token_ids, request.sampling)
        except RequestError as error:
            del self._running[known.custom_id]
            self._fail(known, error)
        except Exception as error:  # as in _step
            self._crashed(error)

    def _step(self) -> None:
        engine = self._live_engine()
        try:
            outputs = engine.step()
            if not outputs and not engine.has_unfinished_requests():
                raise EngineDeadError(f"the engine lost {len(self._running)} requests")
        except Exception as error:  # whatever it was, this engine cannot be trusted any more
            self._crashed(error)
            return
        for output in outputs:
            if output.finished or output.error is not None:
                self._finish(output)

    def _finish(self, output: RequestOutput) -> None:
        running = self._running.pop(output.request_id, None)
        if running is None:
            raise JobError(f"the engine finished {output.request_id!r}, which is not running.")
        known, request = running.row, running.request
        if output.error is not None:
            self._fail(known, output.error)
            return
        reasons = [choice.finish_reason for choice in output.outputs]
        if not reasons or not {"stop", "length"}.issuperset(reasons):
            text = f"the engine ended the request with {reasons}"
            self._fail(known, RequestError(text, code="aborted"), status=500)
            return
        line = answer_line(
            known.custom_id,
            request.kind,
            output,
            row_key=stable_id(self._fingerprint, known.custom_id, known.digest),
            model=self._options.served_model_name or self._encoder.model_name,
            created=int(self._clock()),
            num_top_logprobs=request.sampling.logprobs or 0,
        )
        prompt_tokens = len(output.prompt_token_ids)
        completion_tokens = sum(len(choice.token_ids) for choice in output.outputs)
        finish_reason: Literal["stop", "length"] = "length" if "length" in reasons else "stop"
        self._recorder.record(
            Finished(known.id, ANSWERED, line, prompt_tokens, output.num_cached_tokens,
                     completion_tokens, finish_reason),
            known.line,
        )  # fmt: skip
        self.stats.answered += 1
        self.stats.prompt_tokens += prompt_tokens
        self.stats.completion_tokens += completion_tokens

    def _fail(self, known: PendingRow, error: RequestError, status: int | None = 400) -> None:
        self._recorder.record(failed(known.id, known.custom_id, error, status), known.line)
        self.stats.failed += 1
        if self._options.fail_fast:
            raise fail_fast_error(known.line, known.custom_id, error.message)

    def _crashed(self, error: Exception) -> None:
        """Note who was in flight, so that it is known after a restart of the job, too."""
        in_flight, self._running = list(self._running.values()), {}
        log.error(
            "the engine crashed with %d rows in flight:\n%s",
            len(in_flight),
            "".join(traceback.format_exception(error)),
        )
        self._shut_down()
        self._recorder.flush()
        self._journal.add_crash(running.row.id for running in in_flight)
        if len(in_flight) == 1 and in_flight[0].row.crashes >= CRASHES_TO_SUSPECT:
            known = in_flight[0].row
            text = (
                f"the engine crashed {known.crashes + 1} times with this row in flight, the last "
                f"time with no other: {type(error).__name__}: {error}"
            )
            self._fail(known, RequestError(text, code="engine_crash"), status=None)
        self._crash = error
        self._num_crashes += 1

    def _live_engine(self) -> BatchEngine:
        if self._engine is None:
            self._start_engine()
        assert self._engine is not None, "just started"
        return self._engine

    def _start_engine(self) -> int:
        """A first engine or, as often as allowed, one in place of a crashed one -> most requests to
        keep admitted. It is only started for a row that is to run. One that dies while it starts
        in place of another has crashed, too.
        """
        while self._engine is None:
            if self._crash is not None:
                self._count_restart(self._crash)
            self._report("load", at_once=True)
            began_s = time.monotonic()
            try:
                with self._interrupts.immediate():
                    self._engine = self._factory()
            except EngineDeadError as error:
                if self._crash is None:
                    raise  # one that never ran: it would not the next time either
                log.error("the engine died while it started: %s", error)
                self._crash = error
                self._num_crashes += 1
            except SeesawError:
                raise
            except Exception as error:
                raise JobError(
                    f"the engine could not start: {type(error).__name__}: {error}."
                ) from error
            self.stats.engine_start_s += time.monotonic() - began_s
        self._crash = None
        self._most_running = self._engine.max_num_queued
        return self._most_running

    def _count_restart(self, crash: Exception) -> None:
        """Raises JobError where there were too many."""
        what = f"{type(crash).__name__}: {crash}"
        if self._num_crashes > self._options.max_restarts:
            raise JobError(
                f"the engine crashed {self._num_crashes} times, more than max_restarts="
                f"{self._options.max_restarts} allows; the last time: {what}. The answers so "
                "far are safe; resume with the same command."
            ) from crash
        self.stats.restarts += 1
        self._reporter.message(
            f"the engine crashed ({what}); restart {self.stats.restarts} of at most "
            f"{self._options.max_restarts}, the rows in flight will run again"
        )

    def _shut_down(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            try:
                engine.shutdown()
            except Exception:  # it is being thrown away; the next one starts from nothing
                log.exception("the engine did not shut down cleanly")

    def _report(self, phase: Phase, at_once: bool = False) -> None:
        now_s = time.monotonic()
        if now_s - self._reported_s < PROGRESS_S and not at_once:
            return
        self._reported_s = now_s
        engine = self._engine
        status = engine.status if engine is not None and phase == "run" else None
        self._reporter.progress(
            Progress(
                phase=phase,
                total_rows=sum(self._counts.values()),
                answered_rows=self._counts[ANSWERED] + self.stats.answered,
                failed_rows=self._counts[FAILED] + self.stats.failed,
                running_rows=len(self._running),
                prompt_tokens=self.stats.prompt_tokens,
                completion_tokens=self.stats.completion_tokens,
                elapsed_s=now_s - self._started_s,
                run_rows=self.stats.answered,
                engine=status,
                rates=None if status is None else self._speed.rates(status, now_s),
            )
        )


def fail_fast_error(line: int, custom_id: str | None, message: str) -> JobError:
    name = "" if custom_id is None else f" (custom_id {custom_id!r})"
    return JobError(
        f"line {line}{name} failed: {message} The job stopped because of fail_fast; correct the "
        "row, or resume without it."
    )
