"""The parent's side of `trial.py`: asks a process to try configurations, and starts another one
where it died or did not answer in time.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import IO, Any, Protocol

from seesaw.errors import SeesawError
from seesaw.kernels.kernel import Config
from seesaw.tune.units import Card, Outcome, Unit, Work

START_S = 120.0
TRY_S = 90.0
"""Of one configuration, its compilation and the reference included."""
LAST_LINES = 5


class Trials(Protocol):
    """Where configurations are tried; a fake one in tests."""

    def card(self) -> Card: ...
    def units(self, works: Sequence[Work]) -> list[Unit]: ...
    def attempt(self, unit: Unit, config: Config) -> Outcome:
        """Never raises for what the configuration does."""
        ...

    def close(self) -> None: ...


class ProcessTrials:
    """`Trials` in a process of their own. `command` runs `trial.py` or what speaks like it."""

    def __init__(
        self,
        command: Sequence[str] = (sys.executable, "-m", "seesaw.tune.trial"),
        *,
        start_s: float = START_S,
        try_s: float = TRY_S,
    ) -> None:
        self._command = list(command)
        self._start_s = start_s
        self._try_s = try_s
        self._process: subprocess.Popen[str] | None = None
        self._replies: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._log: IO[bytes] | None = None

    def card(self) -> Card:
        return Card(**self._must("card", {"do": "card"}))

    def units(self, works: Sequence[Work]) -> list[Unit]:
        found = self._must("the list of kernels", {"do": "units", "work": list(map(asdict, works))})
        return [_unit(one) for one in found]

    def attempt(self, unit: Unit, config: Config) -> Outcome:
        request = {"do": "try", "unit": asdict(unit), "config": asdict(config)}
        first = self._process is None
        reply = self._ask(request, self._try_s + (self._start_s if first else 0.0))
        if reply is not None:
            return Outcome(**reply)
        hung = self._process is not None and self._process.poll() is None
        why = self._end()
        if hung:
            return Outcome(status="hung", why=f"no answer within {self._try_s:.0f} s")
        return Outcome(status="crashed", why=why)

    def close(self) -> None:
        self._end()

    def _must(self, what: str, request: Mapping[str, Any]) -> Any:
        reply = self._ask(request, self._start_s + self._try_s * len(request.get("work", ())))
        if reply is None:
            raise SeesawError(
                f"asked for {what}, the process that tries kernels failed: {self._end()}"
            )
        return reply

    def _ask(self, request: Mapping[str, Any], within_s: float) -> Any:
        """The answer; None where the process died or did not answer in time."""
        process = self._process or self._start()
        assert process.stdin is not None, "made with a pipe"
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = self._replies.get(timeout=within_s)
        except (BrokenPipeError, queue.Empty):
            return None
        if line is None:
            process.wait()
            return None
        return json.loads(line)

    def _start(self) -> subprocess.Popen[str]:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed in _end)
        self._replies = queue.SimpleQueue()
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            text=True, start_new_session=True,
        )  # fmt: skip
        reader = threading.Thread(
            target=_read, args=(self._process.stdout, self._replies), daemon=True
        )
        reader.start()
        return self._process

    def _end(self) -> str:
        """Kill the process with all that it started; what it said last."""
        process, self._process = self._process, None
        if process is None or self._log is None:
            return "it was not running"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        self._log.close()
        said = " | ".join(line.strip() for line in lines[-LAST_LINES:] if line.strip())
        return f"exit code {code}: {said}"


def _read(pipe: IO[str], replies: queue.SimpleQueue[str | None]) -> None:
    for line in pipe:
        replies.put(line)
    replies.put(None)


def _unit(plain: Mapping[str, Any]) -> Unit:
    works = tuple(Work(**one) for one in plain["work"])
    configs = tuple(Config(**one) for one in plain["candidates"])
    return Unit(plain["kernel"], plain["key"], works, configs)
