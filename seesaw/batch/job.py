"""A batch job from its options to its exit code: what happens in which order, and what people hear.

Whatever ends a job, what the journal holds is safe and the same command resumes it.
"""

from __future__ import annotations

import enum
import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Literal

from seesaw import __version__
from seesaw.batch.body import BatchRequest, parse_request
from seesaw.batch.dry_run import dry_run
from seesaw.batch.journal import ANSWERED, FAILED, PENDING, Journal, journal_error
from seesaw.batch.lock import JobLock
from seesaw.batch.options import JobOptions
from seesaw.batch.progress import PlainReporter, Progress, Reporter
from seesaw.batch.protocol import EngineFactory, PromptEncoder
from seesaw.batch.reader import Row, read_lines
from seesaw.batch.runner import PROGRESS_S, Runner, RunStats, fail_fast_error
from seesaw.batch.scan import Scan, ScanReport
from seesaw.batch.signals import Interrupted, Interrupts
from seesaw.batch.summary import describe_summary, make_summary
from seesaw.batch.writer import Recorder, ResultFiles, write_atomic
from seesaw.errors import ConfigError, JobError, SeesawError

Status = Literal["complete", "partial", "nothing to do", "interrupted", "failed", "checked"]


class ExitCode(enum.IntEnum):
    """Of a process that runs a job; a signal adds its number to 128."""

    ALL_ANSWERED = 0
    JOB_FAILED = 1
    USAGE = 2
    FAILED_ROWS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """How a job ended. `partial`: all rows that `limit` allowed are done, others are pending."""

    status: Status
    exit_code: int
    summary: dict[str, Any]


def exit_code_of_error(error: SeesawError) -> ExitCode:
    return ExitCode.USAGE if isinstance(error, ConfigError) else ExitCode.JOB_FAILED


def run(
    options: JobOptions,
    encoder_factory: Callable[[], PromptEncoder],
    engine_factory: EngineFactory,
    reporter: Reporter | None = None,
    *,
    clock: Callable[[], float] = time.time,
) -> JobResult:
    """Run, resume or check a job. SIGINT and SIGTERM are handled while it runs.

    `encoder_factory` is called before anything is written, `engine_factory` only if a row has to be
    run. Raises ConfigError for what cannot work (exit code 2) and JobError for a job that stopped
    and can be resumed (exit code 1).
    """
    reporter = reporter or PlainReporter()
    paths = options.paths
    paths.check_files(writes=not options.dry_run)
    with Interrupts() as interrupts:
        job = _Job(options, encoder_factory, engine_factory, reporter, interrupts, clock)
        try:
            return job.check() if options.dry_run else job.run()
        except Interrupted:
            reporter.message("interrupted before any row was run; nothing is lost.")
            code = 128 + interrupts.signal_number
            summary = {"status": "interrupted", "exit_code": code}
            return JobResult(status="interrupted", exit_code=code, summary=summary)
        except sqlite3.Error as error:
            raise journal_error(paths.journal, error) from error
        except OSError as error:
            what = error.strerror or str(error)
            raise JobError(
                f"{error.filename or paths.answers.parent}: {what}. The journal is safe; "
                "resume when this is mended."
            ) from error


class _Job:
    def __init__(
        self,
        options: JobOptions,
        encoder_factory: Callable[[], PromptEncoder],
        engine_factory: EngineFactory,
        reporter: Reporter,
        interrupts: Interrupts,
        clock: Callable[[], float],
    ):
        self._options = options
        self._paths = options.paths
        self._encoder_factory = encoder_factory
        self._engine_factory = engine_factory
        self._reporter = reporter
        self._interrupts = interrupts
        self._clock = clock
        self._started_s = clock()
        self._times: dict[str, float] = {"check_s": 0.0, "engine_start_s": 0.0, "run_s": 0.0}
        self._reported_s = 0.0

    def check(self) -> JobResult:
        """The dry run."""
        self._load_encoder()
        summary = dry_run(
            self._options, self._encoder, self._check_row, self._on_scanned, self._reporter.message
        )
        rows, tokens = summary["rows"], summary["tokens"]
        self._reporter.message(
            f"{rows['valid']:,} of {rows['total']:,} rows are valid: {tokens['prompt']:,} prompt "
            f"tokens, the longest {tokens['longest_prompt']:,}, at most "
            f"{tokens['completion_at_most']:,} tokens to generate"
        )
        code = ExitCode.FAILED_ROWS if rows["failed"] else ExitCode.ALL_ANSWERED
        summary = {"status": "checked", "exit_code": int(code), **summary}
        return JobResult(status="checked", exit_code=code, summary=summary)

    def run(self) -> JobResult:
        with ExitStack() as stack:
            stack.enter_context(JobLock(self._paths.journal))
            self._load_encoder()
            if not self._paths.journal.exists():
                self._refuse_to_replace()
            self._journal = Journal(
                self._paths.journal,
                overwrite=self._options.overwrite,
                on_new=self._refuse_to_replace,
            )
            stack.callback(self._journal.close)
            self._note_version()
            self._files = ResultFiles(self._journal, self._paths)
            self._stats, self._scan = RunStats(), ScanReport()
            self._scan_input()
            if not self._journal.counts()[PENDING] and self._is_written():
                return self._nothing_to_do()
            try:
                return self._run_and_write()
            except SeesawError as error:
                self._summarise("failed", exit_code=exit_code_of_error(error), error=str(error))
                raise

    def _load_encoder(self) -> None:
        with self._interrupts.immediate():
            self._encoder = self._encoder_factory()
        sampling = json.dumps(dict(self._encoder.default_sampling), sort_keys=True, default=str)
        self._fingerprint = f"{self._encoder.fingerprint} {sampling} {self._options.seed}"

    def _refuse_to_replace(self) -> None:
        """For a new journal: answers without one are someone else's, or theirs was lost."""
        if self._paths.answers.exists() and not self._options.overwrite:
            raise ConfigError(
                f"{self._paths.answers} exists, but {self._paths.journal} knows nothing of it. "
                "Choose another -o, give its --journal, or replace it with --overwrite."
            )

    def _note_version(self) -> None:
        version = self._journal.get("seesaw_version")
        if version not in (None, __version__):
            self._reporter.message(
                f"this job was begun with seesaw {version} and goes on with {__version__}; "
                "new answers may differ from those it would have given"
            )
        self._journal.put("seesaw_version", __version__)

    def _scan_input(self) -> None:
        began_s = time.monotonic()
        self._scan = Scan(
            self._journal,
            self._options,
            check=self._check_row,
            model_name=self._encoder.model_name,
            fingerprint=self._fingerprint,
        ).run(read_lines(self._paths.input), self._on_scanned)
        self._times["check_s"] = time.monotonic() - began_s
        self._tell_scan(self._journal.counts())

    def _run_and_write(self) -> JobResult:
        counts = self._journal.counts()
        self._journal.put("written", "")
        self._files.rewrite()
        if self._options.fail_fast and counts[FAILED]:
            line, failure = self._first_failure()
            raise fail_fast_error(line, failure["custom_id"], failure["message"])
        if counts[PENDING]:
            with suppress(Interrupted):  # the engine was loading; the signal is looked at below
                self._run_rows()
        pending = self._journal.counts()[PENDING]
        if pending and self._interrupts.stop:
            return self._interrupted()
        return self._finish("partial" if pending else "complete")

    def _run_rows(self) -> None:
        began_s = time.monotonic()
        with Recorder(self._journal, self._paths) as recorder:
            runner = Runner(
                self._options,
                self._journal,
                recorder,
                self._encoder,
                self._engine_factory,
                check=self._check_row,
                fingerprint=self._fingerprint,
                interrupts=self._interrupts,
                reporter=self._reporter,
                clock=self._clock,
            )
            self._stats = runner.stats
            try:
                runner.run()
            finally:
                self._times["engine_start_s"] = runner.stats.engine_start_s
                elapsed_s = time.monotonic() - began_s
                self._times["run_s"] = elapsed_s - runner.stats.engine_start_s

    def _finish(self, status: Status) -> JobResult:
        """The files in input order, then the summary, then the note that they are written."""
        sizes = self._files.rewrite()
        code = self._exit_code()
        summary = self._summarise(status, exit_code=code)
        self._journal.put("written", json.dumps(sizes))
        first = None
        if summary["rows"]["failed"]:
            number, failure = self._first_failure()
            first = f"line {number}: {failure['message']}"
        for line in describe_summary(summary, first):
            self._reporter.message(line)
        return JobResult(status=status, exit_code=code, summary=summary)

    def _first_failure(self) -> tuple[int, dict[str, Any]]:
        """Its line in the input and its entry in the journal."""
        _, line, _, content = next(self._journal.results(FAILED))
        failure: dict[str, Any] = json.loads(content)
        return line, failure

    def _nothing_to_do(self) -> JobResult:
        any_row = any(self._journal.counts().values())
        why = "every row of the input is done" if any_row else "the input has no row"
        self._reporter.message(f"nothing to do: {why}")
        code = self._exit_code()
        head = {"status": "nothing to do", "exit_code": int(code)}
        return JobResult(
            status="nothing to do", exit_code=code, summary={**head, **self._summary()}
        )

    def _interrupted(self) -> JobResult:
        code = 128 + self._interrupts.signal_number
        summary = self._summarise("interrupted", exit_code=code)
        rows = summary["rows"]
        how = self._options.resume_command or "the same command (without --overwrite)"
        self._reporter.message(
            f"interrupted: {rows['answered']:,} of {rows['total']:,} rows are answered and saved "
            f"in {self._paths.answers}. Resume: {how}"
        )
        return JobResult(status="interrupted", exit_code=code, summary=summary)

    def _exit_code(self) -> ExitCode:
        return ExitCode.FAILED_ROWS if self._journal.counts()[FAILED] else ExitCode.ALL_ANSWERED

    def _is_written(self) -> bool:
        sizes = self._journal.get("written")
        return bool(sizes) and self._files.match(json.loads(sizes or "{}"))

    def _summary(self) -> dict[str, Any]:
        files = {"answers": str(self._paths.answers)}
        if self._journal.counts()[FAILED]:
            files["errors"] = str(self._paths.errors)
        return {
            "model": self._encoder.model_name,
            "seesaw_version": __version__,
            **make_summary(self._journal, self._scan, self._stats),
            "times": {
                "created": float(self._journal.get("created") or 0),
                "started": self._started_s,
                "ended": self._clock(),
                **self._times,
            },
            "files": files,
        }

    def _summarise(
        self, status: Status, *, exit_code: int, error: str | None = None
    ) -> dict[str, Any]:
        """Write the summary file and return what is in it."""
        head: dict[str, Any] = {"status": status, "exit_code": int(exit_code)}
        if error is not None:
            head["error"] = error
        summary = {**head, **self._summary()}
        write_atomic(self._paths.summary, [json.dumps(summary, indent=2).encode("utf-8"), b"\n"])
        return summary

    def _check_row(self, row: Row) -> BatchRequest:
        return parse_request(
            row,
            defaults=self._encoder.default_sampling,
            job_seed=self._options.seed,
            served_model_name=self._options.served_model_name,
        )

    def _on_scanned(self, num_rows: int) -> None:
        if self._interrupts.stop:
            raise Interrupted
        now_s = time.monotonic()
        if now_s - self._reported_s >= PROGRESS_S:
            self._reported_s = now_s
            self._reporter.progress(Progress(phase="check", total_rows=None, read_rows=num_rows))

    def _tell_scan(self, counts: dict[int, int]) -> None:
        scan = self._scan
        if counts[ANSWERED] or scan.removed:
            self._reporter.message(
                f"resuming: {counts[ANSWERED]:,} rows are answered, {counts[FAILED]:,} failed, "
                f"{counts[PENDING]:,} are to be run ({scan.new:,} new, {scan.changed:,} changed, "
                f"{scan.retried:,} retried)"
            )
        if scan.removed:
            self._reporter.message(
                f"{scan.removed:,} rows are no longer in the input and were dropped, "
                f"{scan.removed_answered:,} of them answered"
            )
