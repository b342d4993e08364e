"""Bring the journal in line with the input: new, changed, moved, removed and broken rows.

One transaction: a refused, interrupted or killed scan leaves the journal as it was. Rows are known
by custom_id, never by place. Runs nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from seesaw.batch.body import IGNORED, BatchRequest
from seesaw.batch.journal import ANSWERED, FAILED, PENDING, Finished, Journal, StoredRow
from seesaw.batch.options import JobOptions
from seesaw.batch.reader import Line, Row, clip, parse_row
from seesaw.batch.response import failure_of
from seesaw.errors import ConfigError, RequestError

FLAG_NAMES = ("other_model", *IGNORED)
"""What bit b of a row's flags says."""


@dataclass(slots=True)
class ScanReport:
    """Numbers of rows; `failed` ones did so in this scan, `removed` ones had a custom_id."""

    rows: int = 0
    failed: int = 0
    new: int = 0
    changed: int = 0
    retried: int = 0
    removed: int = 0
    removed_answered: int = 0


class Scan:
    """`check` validates a row (RequestError); `fingerprint` stands for model and sampling."""

    def __init__(
        self,
        journal: Journal,
        options: JobOptions,
        *,
        check: Callable[[Row], BatchRequest],
        model_name: str,
        fingerprint: str,
    ):
        self.report = ScanReport()
        self._journal = journal
        self._options = options
        self._check = check
        self._model_name = model_name
        self._fingerprint = fingerprint
        self._scan = int(journal.get("scan") or 0) + 1
        self._kept = 0
        self._answered_and_changed = 0
        self._touched = False  # the files of an earlier run do not match the journal any more
        self._broken = hashlib.blake2b(digest_size=16)  # of the lines without an identity

    def run(self, lines: Iterable[Line], on_row: Callable[[int], None]) -> ScanReport:
        """`on_row(number of rows so far)` may raise to give up. Raises ConfigError where answers
        would be lost without the user's word.
        """
        with self._journal.transaction():
            answered = self._journal.counts()[ANSWERED]
            self._compare_fingerprint(answered)
            self._journal.put("scan", str(self._scan))
            for line in lines:
                self._meet(line)
                self.report.rows += 1
                on_row(self.report.rows)
            self._refuse_or_drop(answered)
            if self._touched or self._journal.get("broken") != self._broken.hexdigest():
                self._journal.put("broken", self._broken.hexdigest())
                self._journal.put("written", "")
        return self.report

    def _compare_fingerprint(self, answered: int) -> None:
        before = self._journal.get("fingerprint")
        if before != self._fingerprint:
            if before is not None and answered:
                if not self._options.redo_changed:
                    raise ConfigError(
                        f"the model or its sampling changed since {answered} rows were answered. "
                        "Use the earlier ones, or run these rows again with --redo-changed, or "
                        "start anew with --overwrite."
                    )
                self._journal.reset_answered()
                self.report.changed += answered
                self._touched = True
            self._journal.put("fingerprint", self._fingerprint)

    def _meet(self, line: Line) -> None:
        try:
            row = parse_row(line)
        except RequestError as error:
            self._insert_failed(None, line.number, b"", error, custom_id=None)
            return
        stored = self._journal.find(row.custom_id)
        if stored is None:
            self.report.new += 1
            self._insert(row)
        elif stored.scan == self._scan:
            duplicate = RequestError(
                f"custom_id {clip(repr(row.custom_id))} is taken by line {stored.line}. "
                "Give each row its own.",
                param="custom_id",
                code="duplicate_custom_id",
            )
            self._insert_failed(None, row.line, row.digest, duplicate, custom_id=row.custom_id)
        else:
            self._meet_again(row, stored)

    def _meet_again(self, row: Row, stored: StoredRow) -> None:
        self._kept += 1
        self._touched |= stored.line != row.line
        self._journal.seen(stored.id, row.line, self._scan)
        changed = row.digest != stored.digest
        if changed:
            self.report.changed += 1
            if stored.state == ANSWERED and not self._options.redo_changed:
                self._answered_and_changed += 1
                return
        elif stored.state != FAILED or not self._options.retry_failed:
            return
        else:
            self.report.retried += 1
        self._reset(row, stored.id)

    def _insert(self, row: Row) -> None:
        self._touched = True
        try:
            flags = self._flags(self._check(row))
        except RequestError as error:
            self._insert_failed(row.custom_id, row.line, row.digest, error)
            return
        self._journal.insert(row.custom_id, row.digest, row.line, self._scan, PENDING, flags)

    def _reset(self, row: Row, row_id: int) -> None:
        self._touched = True
        try:
            self._journal.reset(row_id, row.digest, self._flags(self._check(row)))
        except RequestError as error:
            self._journal.reset(row_id, row.digest, 0)
            self._fail(row_id, row.custom_id, error)

    def _insert_failed(
        self,
        key: str | None,
        line: int,
        digest: bytes,
        error: RequestError,
        custom_id: str | None = None,
    ) -> None:
        """`key` None: the line is met as new in each scan; `custom_id` is then only for show."""
        row_id = self._journal.insert(key, digest, line, self._scan, FAILED, 0)
        if key is None:
            self._broken.update(f"{line} {custom_id!r} {error.message}\n".encode())
        self._fail(row_id, key or custom_id, error)

    def _fail(self, row_id: int, custom_id: str | None, error: RequestError) -> None:
        self.report.failed += 1
        self._journal.add_result(failed(row_id, custom_id, error))

    def _flags(self, request: BatchRequest) -> int:
        other = request.model is not None and request.model != self._model_name
        names = ("other_model",) * other + request.ignored
        return sum(1 << FLAG_NAMES.index(name) for name in names)

    def _refuse_or_drop(self, answered: int) -> None:
        if self._answered_and_changed:
            raise ConfigError(
                f"{self._answered_and_changed} of {answered} answered rows have changed in the "
                "input. Run them again with --redo-changed, start anew with --overwrite, or put "
                "the earlier rows back."
            )
        if answered and not self._kept:
            raise ConfigError(
                f"the input has none of the {answered} rows answered so far. Is it the right "
                "file? Give it another -o, or start anew with --overwrite."
            )
        report = self.report
        report.removed, report.removed_answered = self._journal.drop_unseen(self._scan)
        self._touched |= report.removed > 0


def failed(
    row_id: int, custom_id: str | None, error: RequestError, status: int | None = 400
) -> Finished:
    """The journal's entry of a failed row; its line number may change, so it is not kept."""
    content = {"custom_id": custom_id, **failure_of(error, status)}
    return Finished(row_id, FAILED, json.dumps(content).encode("ascii"))
