"""`seesaw run-batch`: an OpenAI batch file in, every answer out."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from seesaw.api.flags import make_flags
from seesaw.api.report import STDOUT, machine_output, output_json_flag
from seesaw.api.settings import EngineCommand, engine_flags, take_engine_settings
from seesaw.batch.options import JobOptions, JobPaths
from seesaw.config import EngineConfig, flag_fields
from seesaw.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from seesaw.batch.job import JobResult
    from seesaw.batch.protocol import BatchEngine, PromptEncoder
    from seesaw.weights.checkpoint import Checkpoint


@click.command(
    cls=EngineCommand,
    params=[
        *make_flags(JobOptions, flag_fields(JobOptions), "Job"),
        *engine_flags(),
        output_json_flag("the summary"),
    ],
    examples=[
        "seesaw run-batch -i in.jsonl -o out.jsonl --model model.gguf",
        "seesaw run-batch -i in.jsonl -o out.jsonl --model my-model --dry-run",
    ],
)
def run_batch(output_json: str | None, **values: Any) -> int:
    """Answer an OpenAI batch file (chat and completions).

    Answers are saved as they finish. Run the same command again after an interruption: finished
    rows are kept, the others run. Exit codes: 0 all answered, 1 the job failed and can be resumed,
    2 usage, 3 finished with failed rows, 130 or 143 interrupted.
    """
    job = {field.name: values.pop(field.name) for field, _, _ in flag_fields(JobOptions)}
    settings = take_engine_settings(values)
    options = JobOptions(**job, seed=settings["seed"], resume_command=_resume_command(sys.argv))
    _check_apart(output_json, options.paths)
    with machine_output(output_json) as write:
        result = _run(options, EngineConfig(**settings))
        write(result.summary)
    return result.exit_code


def _run(options: JobOptions, config: EngineConfig) -> JobResult:
    from seesaw.batch import job
    from seesaw.batch.progress import PlainReporter

    model = _Model(config)
    if not sys.stderr.isatty():
        return job.run(options, model.encoder, partial(model.engine, None), PlainReporter())
    from seesaw.api.batch_progress import TerminalReporter

    with TerminalReporter() as reporter:
        return job.run(options, model.encoder, partial(model.engine, reporter.loading), reporter)


class _Model:
    """Makes what a job asks for, over one checkpoint that is opened once."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        from seesaw.weights.checkpoint import open_checkpoint

        return open_checkpoint(self._config)

    def encoder(self) -> PromptEncoder:
        from seesaw.engine import prompts

        return prompts.PromptEncoder(self._config, self._checkpoint)

    def engine(self, progress: Callable[[int, int], None] | None) -> BatchEngine:
        from seesaw.engine.engine import Engine

        return Engine(self._config, progress=progress, checkpoint=self._checkpoint)


def _resume_command(argv: list[str]) -> str:
    """The command that was given, less what would throw finished rows away."""
    script = Path(argv[0])
    words = [argv[0]]
    if script.name == "__main__.py":
        words = [sys.executable, "-m", "seesaw"]
    elif (found := shutil.which(script.name)) and script.exists() and script.samefile(found):
        words = [script.name]
    return shlex.join([*words, *(arg for arg in argv[1:] if arg != "--overwrite")])


def _check_apart(output_json: str | None, paths: JobPaths) -> None:
    """Raise ConfigError where the JSON would take the place of a file of the job."""
    if output_json in (None, STDOUT):
        return
    files = (paths.input, paths.answers, paths.errors, paths.summary, paths.journal)
    if os.path.realpath(output_json) in map(os.path.realpath, files):
        raise ConfigError(
            f"--output-json {output_json}: is a file of this job. Choose another name "
            f"(the summary is in {paths.summary} in any case)."
        )
