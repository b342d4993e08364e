"""Settings of a batch job and the places of its files; the CLI makes its flags from them."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from seesaw.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """One job. Contradictions raise ConfigError here, the state of the disk in `check_files`."""

    input: str = field(
        metadata={"help": "JSON lines of OpenAI batch requests, plain or gzip", "short": "-i"}
    )
    output: str = field(
        metadata={"help": "JSON lines of answers, in input order at the end", "short": "-o"}
    )
    journal: str | None = field(
        default=None,
        metadata={"help": "where the job keeps its state (default: <output stem>.journal.sqlite)"},
    )
    served_model_name: str | None = field(
        default=None,
        metadata={"help": "rows that name another model fail (default: any name is accepted)"},
    )
    limit: int | None = field(
        default=None,
        metadata={"help": "run at most this many unfinished rows now, the first in the file"},
    )
    max_restarts: int = field(
        default=3, metadata={"help": "engine restarts after crashes before the job gives up"}
    )
    retry_failed: bool = field(
        default=False, metadata={"help": "run rows again that failed in an earlier run"}
    )
    redo_changed: bool = field(
        default=False,
        metadata={"help": "run answered rows again whose text, model or sampling has changed"},
    )
    overwrite: bool = field(
        default=False, metadata={"help": "forget all earlier answers of this output and start anew"}
    )
    fail_fast: bool = field(
        default=False, metadata={"help": "stop the job at the first failed row"}
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "check all rows and count their tokens; load no weights, write nothing"},
    )
    seed: int = field(
        default=0,
        metadata={"help": "rows without a seed draw from this and their custom_id", "cli": False},
    )
    resume_command: str | None = field(
        default=None, metadata={"help": "printed after an interruption", "cli": False}
    )

    def __post_init__(self) -> None:
        if self.input == "-":
            raise ConfigError("input '-': a job must be able to read its input again. Give a file.")
        if self.output == "-" or self.output.endswith(".gz"):
            raise ConfigError(
                f"output {self.output!r}: answers are appended as they finish, so a plain file is "
                "expected. Compress it afterwards."
            )
        for name in ("input", "output", "journal"):
            value = getattr(self, name)
            if value is not None and not Path(value).name:
                raise ConfigError(f"{name} {value!r}: expected the path of a file.")
        for name, low in (("limit", 1), ("max_restarts", 0)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < low):
                raise ConfigError(f"{name}={value!r}: expected an integer from {low}.")
        if self.overwrite and (self.redo_changed or self.retry_failed):
            raise ConfigError(
                "overwrite starts anew, redo_changed and retry_failed go on. Give one of them."
            )

    @property
    def paths(self) -> JobPaths:
        out = Path(self.output)
        stem = out.with_suffix("") if out.suffix in (".jsonl", ".json", ".ndjson") else out
        beside = stem.name
        return JobPaths(
            input=Path(self.input),
            answers=out,
            errors=out.with_name(f"{beside}.errors.jsonl"),
            summary=out.with_name(f"{beside}.summary.json"),
            journal=Path(self.journal or out.with_name(f"{beside}.journal.sqlite")),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class JobPaths:
    input: Path
    answers: Path
    errors: Path
    summary: Path
    journal: Path

    def check_files(self, *, writes: bool) -> None:
        """Raise ConfigError for whatever would stop the job later: an input that cannot be read
        twice, an output that cannot be written, two names for one file.
        """
        try:
            mode = os.stat(self.input).st_mode
        except OSError as error:
            raise ConfigError(
                f"input {self.input}: {error.strerror}. Check the path given with -i."
            ) from error
        if not stat.S_ISREG(mode):
            raise ConfigError(
                f"input {self.input}: not a regular file, and a job must be able to read its "
                "input again. Save it to a file first."
            )
        if not os.access(self.input, os.R_OK):
            raise ConfigError(f"input {self.input}: no permission to read it.")
        if not writes:
            return
        outputs = (self.answers, self.errors, self.summary, self.journal)
        real = [os.path.realpath(p) for p in (self.input, *outputs)]
        for i, path in enumerate(outputs, 1):
            if real[i] in real[:i]:
                raise ConfigError(
                    f"{path}: named for two things of this job. Choose another -o or --journal."
                )
            if path.is_dir():
                raise ConfigError(f"{path}: is a folder, expected a file. Choose another name.")
            if not path.parent.is_dir():
                raise ConfigError(
                    f"{path}: the folder {path.parent} does not exist. Make it or choose another."
                )
            if not os.access(path.parent, os.W_OK | os.X_OK):
                raise ConfigError(f"{path}: no permission to write in {path.parent}.")
