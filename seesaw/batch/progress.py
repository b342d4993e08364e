"""What a job tells whoever watches it, and the plain reporter for places without a terminal."""

from __future__ import annotations

import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TextIO

from seesaw.outputs import EngineStatus

Phase = Literal["check", "load", "run"]

RATE_S = 5.0
"""Over what time rates are a mean."""


class Rates(NamedTuple):
    """Tokens of prompts and of answers that were computed, per second."""

    prompt: float
    decoded: float


class Speedometer:
    """Rates over the last RATE_S seconds of an engine."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque()

    def rates(self, status: EngineStatus, now_s: float) -> Rates:
        seen = self._seen
        if seen and status.prompt_tokens < seen[-1][1]:
            seen.clear()  # another engine
        seen.append((now_s, status.prompt_tokens, status.decoded_tokens))
        while len(seen) > 2 and seen[1][0] <= now_s - RATE_S:
            seen.popleft()
        first_s, prompt, decoded = seen[0]
        elapsed_s = now_s - first_s
        if elapsed_s <= 0:
            return Rates(0.0, 0.0)
        return Rates(
            (status.prompt_tokens - prompt) / elapsed_s,
            (status.decoded_tokens - decoded) / elapsed_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A moment of a job. Rows count over all runs of it, tokens and seconds over this one.

    `total_rows` is None while the input is still being read. `run_rows` are those answered in this
    run; `engine` and `rates` are there while rows run.
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
    run_rows: int = 0
    engine: EngineStatus | None = None
    rates: Rates | None = None

    @property
    def done_rows(self) -> int:
        return self.answered_rows + self.failed_rows

    @property
    def left_s(self) -> float | None:
        """Seconds until all rows are done, where enough is known: prompts and answers that are
        left, at what those so far took; the rows to come are taken to be like them. None where
        those that run are longer than that already."""
        at = self.engine
        if at is None or self.total_rows is None or not self.run_rows or not at.decoded_tokens:
            return None
        rows_left = self.total_rows - self.done_rows
        decoded_of_running = max(0, at.decoded_tokens - self.completion_tokens)
        # Short answers end first: those that run count for the mean, too.
        answers = rows_left * at.decoded_tokens / self.run_rows - decoded_of_running
        if not rows_left:
            return 0.0
        if answers <= 0:
            return None
        begun = self.run_rows + at.num_begun
        prompts = max(0, rows_left - at.num_begun) / begun
        return answers * at.decode_s / at.decoded_tokens + prompts * at.prefill_s


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
        if now.engine is None and now.elapsed_s > 0:
            text += f", {now.completion_tokens / now.elapsed_s:,.1f} tokens/s"
    parts = [text, *describe_engine(now), clock(now.elapsed_s)]
    if (left_s := now.left_s) is not None:
        parts.append(f"about {clock(left_s)} left")
    return ", ".join(parts)


def describe_engine(now: Progress) -> list[str]:
    """`decode in tp2`, `tier 45%`, `device 80%`, `1,234 tokens/s in`, `456 out`"""
    parts: list[str] = []
    if (at := now.engine) is not None:
        parts.append(f"{at.phase} in {at.layout}" if at.phase else at.layout)
        if at.tier_share is not None:
            parts.append(f"tier {at.tier_share:.0%}")
        parts.append(f"device {at.device_share:.0%}")
    if now.rates is not None:
        parts += [f"{now.rates.prompt:,.0f} tokens/s in", f"{now.rates.decoded:,.0f} out"]
    return parts


def clock(seconds: float) -> str:
    """`1:01:10`"""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
