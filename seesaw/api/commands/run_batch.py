"""`seesaw run-batch`: an OpenAI batch file in, every answer out."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from seesaw.api.flags import flag_fields, make_flags
from seesaw.api.report import STDOUT, check_trace, machine_output, output_json_flag, trace_flag
from seesaw.api.settings import EngineCommand, engine_flags, take_engine_settings
from seesaw.batch.options import JobOptions, JobPaths
from seesaw.config import EngineConfig
from seesaw.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from seesaw.batch.job import JobResult
    from seesaw.batch.protocol import BatchEngine, PromptEncoder
    from seesaw.trace import TraceWriter
    from seesaw.weights.checkpoint import Checkpoint


@click.command(
    cls=EngineCommand,
    params=[
        *make_flags(JobOptions, flag_fields(JobOptions), "Job"),
        *engine_flags(),
        trace_flag(),
        output_json_flag("the summary"),
    ],
    examples=[
        "seesaw run-batch -i in.jsonl -o out.jsonl --model model.gguf",
        "seesaw run-batch -i in.jsonl -o out.jsonl --model my-model --dry-run",
    ],
)
def run_batch(trace: str | None, output_json: str | None, **values: Any) -> int:
    """Answer an OpenAI batch file (chat and completions).

    Answers are saved as they finish. Run the same command again after an interruption: finished
    rows are kept, the others run. Exit codes: 0 all answered, 1 the job failed and can be resumed,
    2 usage, 3 finished with failed rows, 130 or 143 interrupted.
    """
    job = {field.name: values.pop(field.name) for field, _, _ in flag_fields(JobOptions)}
    settings = take_engine_settings(values)
    options = JobOptions(**job, seed=settings["seed"], resume_command=_resume_command(sys.argv))
    _check_apart("--output-json", output_json, options.paths)
    _check_apart("--trace", trace, options.paths)
    check_trace(trace)
    with machine_output(output_json) as write:
        result = _run(options, EngineConfig(**settings), trace)
        write(result.summary)
    return result.exit_code


def _run(options: JobOptions, config: EngineConfig, trace: str | None) -> JobResult:
    from seesaw.batch import job
    from seesaw.batch.progress import PlainReporter

    with ExitStack() as stack:
        model = _Model(config, options.paths.input, trace, stack)
        if not sys.stderr.isatty():
            return job.run(options, model.encoder, partial(model.engine, None), PlainReporter())
        from seesaw.api.batch_progress import TerminalReporter

        reporter = stack.enter_context(TerminalReporter())
        return job.run(options, model.encoder, partial(model.engine, reporter.loading), reporter)


class _Model:
    """Makes what a job asks for, over one checkpoint that is opened once. All its engines write to
    one trace, which `stack` closes."""

    def __init__(
        self, config: EngineConfig, batch_file: Path, trace: str | None, stack: ExitStack
    ) -> None:
        self._config = config
        self._batch_file = batch_file
        self._trace = trace
        self._stack = stack

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        from seesaw.weights.checkpoint import open_checkpoint

        return open_checkpoint(self._config)

    @cached_property
    def _writer(self) -> TraceWriter | None:
        """Begun with the first engine: a job that has nothing to do leaves an older trace alone."""
        if self._trace is None:
            return None
        from seesaw.api.llm import open_trace

        return self._stack.enter_context(open_trace(self._trace))

    def encoder(self) -> PromptEncoder:
        from seesaw.engine import prompts

        return prompts.PromptEncoder(self._config, self._checkpoint)

    def engine(self, progress: Callable[[int, int], None] | None) -> BatchEngine:
        from seesaw.engine.engine import Engine

        return Engine(
            self._for_job(), progress=progress, checkpoint=self._checkpoint, trace=self._writer
        )

    def _for_job(self) -> EngineConfig:
        """With the lengths of the batch file's rows, where layouts are to be chosen for them."""
        from seesaw.api.batch_lengths import sample_lengths

        if self._config.given_layouts is not None:
            return self._config
        lengths, num_answers = sample_lengths(self._batch_file)
        return replace(
            self._config, expected_lengths=lengths, expected_requests=num_answers or None
        )


def _resume_command(argv: list[str]) -> str:
    """The command that was given, less what would throw finished rows away."""
    script = Path(argv[0])
    words = [argv[0]]
    if script.name == "__main__.py":
        words = [sys.executable, "-m", "seesaw"]
    elif (found := shutil.which(script.name)) and script.exists() and script.samefile(found):
        words = [script.name]
    return shlex.join([*words, *(arg for arg in argv[1:] if arg != "--overwrite")])


def _check_apart(flag: str, name: str | None, paths: JobPaths) -> None:
    """Raise ConfigError where what `flag` names would take the place of a file of the job."""
    if name in (None, STDOUT):
        return
    files = (paths.input, paths.answers, paths.errors, paths.summary, paths.journal)
    if os.path.realpath(name) in map(os.path.realpath, files):
        raise ConfigError(
            f"{flag} {name}: is a file of this job. Choose another name "
            f"(the summary is in {paths.summary} in any case)."
        )
