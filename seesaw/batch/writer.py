"""From results in memory to the journal and the files beside it.

The journal is written first, so the files never hold what it does not. They are appended to while
the job runs and rewritten in input order, by an atomic rename, at its beginning and end.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from seesaw.batch.journal import ANSWERED, FAILED, Finished, Journal
from seesaw.batch.options import JobPaths
from seesaw.batch.response import error_line, stable_id

FLUSH_S = 0.5
MOST_WAITING = 1000
"""Results held in memory; at more the job waits for the disk, or a slow one would fill memory."""


def write_atomic(path: Path, parts: Iterable[bytes]) -> int:
    """Replace `path` so that at any moment, also after a loss of power, it is the old or the new
    file -> bytes written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
        num_bytes = file.tell()
    os.replace(temporary, path)
    _sync_folder(path.parent)
    return num_bytes


def append(path: Path, lines: Iterable[bytes]) -> None:
    """Add to a file that only this process writes; a torn end is mended by the next rewrite."""
    with path.open("ab") as file:
        file.writelines(lines)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse fsync on folders
            os.fsync(fd)
    finally:
        os.close(fd)


class ResultFiles:
    """Answers and errors file as copies of the journal."""

    def __init__(self, journal: Journal, paths: JobPaths):
        self._journal = journal
        self._paths = paths

    def rewrite(self) -> dict[str, int]:
        """Both files from the journal, in input order -> bytes by file name. No failed row, no
        errors file.
        """
        sizes = {self._paths.answers.name: write_atomic(self._paths.answers, self._answers())}
        if self._journal.counts()[FAILED]:
            sizes[self._paths.errors.name] = write_atomic(self._paths.errors, self._errors())
        else:
            self._paths.errors.unlink(missing_ok=True)
        return sizes

    def match(self, sizes: dict[str, int]) -> bool:
        """Whether the files are there with these sizes, as `rewrite` left them."""
        for path in (self._paths.answers, self._paths.errors):
            size = path.stat().st_size if path.exists() else None
            if sizes.get(path.name) != size:
                return False
        return True

    def _answers(self) -> Iterator[bytes]:
        for _, _, _, content in self._journal.results(ANSWERED):
            yield content

    def _errors(self) -> Iterator[bytes]:
        for _, line, _, content in self._journal.results(FAILED):
            yield render_error(line, content)


def render_error(line: int, content: bytes) -> bytes:
    """A line of the errors file from the journal's entry."""
    failure = json.loads(content)
    custom_id = failure["custom_id"]
    key = stable_id("error", custom_id or f"line {line}", failure["message"])
    return error_line(custom_id, line, failure, row_key=key)


class Recorder:
    """Takes results from the job; a thread commits them every FLUSH_S seconds and then appends them
    to the files, so that a long engine step holds nothing back.

    A failure of that thread (disk full) is raised by the next call of the job.
    """

    def __init__(self, journal: Journal, paths: JobPaths):
        self._journal = journal
        self._paths = paths
        self._waiting: list[tuple[Finished, int]] = []
        self._guard = threading.Lock()
        self._commit = threading.Lock()
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._loop, name="seesaw-recorder", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Flush what is there, whatever ended the job."""
        self._stop.set()
        self._thread.join()
        if self._error is None:
            self.flush()
        elif error is None:
            raise self._error

    def record(self, result: Finished, line: int) -> None:
        """Keep the result of the row at input line `line`."""
        if self._error is not None:
            raise self._error
        with self._guard:
            self._waiting.append((result, line))
            full = len(self._waiting) >= MOST_WAITING
        if full:
            self.flush()

    def flush(self) -> None:
        """Commit and append all results recorded before this call."""
        with self._commit:
            with self._guard:
                batch, self._waiting = self._waiting, []
            if not batch:
                return
            self._journal.finish(result for result, _ in batch)
            answers = [r.content for r, _ in batch if r.state == ANSWERED]
            errors = [render_error(line, r.content) for r, line in batch if r.state == FAILED]
            for path, lines in ((self._paths.answers, answers), (self._paths.errors, errors)):
                if lines:
                    append(path, lines)

    def _loop(self) -> None:
        while not self._stop.wait(FLUSH_S):
            try:
                self.flush()
            except BaseException as error:  # handed to the job's thread
                self._error = error
                return
