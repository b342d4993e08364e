"""What a job tells whoever watches it, and the plain reporter for places without a terminal."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Literal, Protocol, TextIO

Phase = Literal["check", "load", "run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A moment of a job. Rows count over all runs of it, tokens and seconds over this one.

    `total_rows` is None while the input is still being read.
    """

    phase: Phase
    total_rows: int | None
    read_rows: int = 0
    answered_rows: int = 0
    failed_rows: int = 0
    running_rows: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    elapsed_s: float = 0.0

    @property
    def done_rows(self) -> int:
        return self.answered_rows + self.failed_rows


class Reporter(Protocol):
    def message(self, text: str) -> None:
        """One thing a person should read, once."""
        ...

    def progress(self, now: Progress) -> None:
        """Called up to ten times a second, from the thread of the job; must not block."""
        ...


class PlainReporter:
    """Messages as they come and one line of progress every `every_s` seconds."""

    def __init__(self, stream: TextIO | None = None, every_s: float = 30.0):
        self._stream = stream or sys.stderr
        self._every_s = every_s
        self._last_s = time.monotonic()

    def message(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def progress(self, now: Progress) -> None:
        if time.monotonic() - self._last_s < self._every_s:
            return
        self._last_s = time.monotonic()
        self.message(describe(now))


def describe(now: Progress) -> str:
    """`run: 120/200 rows (3 failed), 48 running, 1,234 tokens out, 96.1 tokens/s, 0:01:10`"""
    if now.total_rows is None:
        text = f"{now.phase}: {now.read_rows:,} rows read"
    else:
        text = f"{now.phase}: {now.done_rows:,}/{now.total_rows:,} rows"
    if now.failed_rows:
        text += f" ({now.failed_rows:,} failed)"
    if now.phase == "run":
        text += f", {now.running_rows:,} running, {now.completion_tokens:,} tokens out"
        if now.elapsed_s > 0:
            text += f", {now.completion_tokens / now.elapsed_s:,.1f} tokens/s"
    minutes, seconds = divmod(int(now.elapsed_s), 60)
    return f"{text}, {minutes // 60}:{minutes % 60:02}:{seconds:02}"
