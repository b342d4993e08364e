"""Check every row as a job would, with the tokenizer but without weights; write nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from seesaw.batch.body import BatchRequest
from seesaw.batch.journal import FAILED, Journal
from seesaw.batch.options import JobOptions
from seesaw.batch.pending import encode, read_pending
from seesaw.batch.protocol import PromptEncoder
from seesaw.batch.reader import Row, read_lines
from seesaw.batch.scan import FLAG_NAMES, Scan
from seesaw.errors import RequestError

MAX_SHOWN = 20


def dry_run(
    options: JobOptions,
    encoder: PromptEncoder,
    check: Callable[[Row], BatchRequest],
    on_row: Callable[[int], None],
    show: Callable[[str], None],
) -> dict[str, Any]:
    """The summary of what a job would be given: rows, tokens, and what is wrong (the first
    MAX_SHOWN are shown).
    """
    journal = Journal(None)
    try:
        scan = Scan(journal, options, check=check, model_name=encoder.model_name, fingerprint="")
        report = scan.run(read_lines(options.paths.input), on_row)
        problems = Problems(show)
        for _, line, _, content in journal.results(FAILED):
            problems.add(line, json.loads(content)["message"])
        tokens = _count_tokens(options, journal, encoder, check, problems)
        failed = problems.num_rows
        flags = journal.totals()
    finally:
        journal.close()
    ignored = {name: flags[f"flag_{bit}"] for bit, name in enumerate(FLAG_NAMES)}
    return {
        "rows": {
            "total": report.rows,
            "valid": report.rows - failed,
            "failed": failed,
            "named_another_model": ignored.pop("other_model"),
        },
        "tokens": tokens,
        "ignored_fields": {name: rows for name, rows in ignored.items() if rows},
    }


class Problems:
    """Counts failed rows and shows the first of them."""

    def __init__(self, show: Callable[[str], None]):
        self.num_rows = 0
        self._show = show

    def add(self, line: int, message: str) -> None:
        self.num_rows += 1
        if self.num_rows <= MAX_SHOWN:
            self._show(f"line {line}: {message}")
        elif self.num_rows == MAX_SHOWN + 1:
            self._show("more rows fail; they are counted only")


def _count_tokens(
    options: JobOptions,
    journal: Journal,
    encoder: PromptEncoder,
    check: Callable[[Row], BatchRequest],
    problems: Problems,
) -> dict[str, int]:
    """Prompt tokens of all rows that can be encoded, of the longest, and the most that the answers
    can have.
    """
    counted = {"prompt": 0, "longest_prompt": 0, "completion_at_most": 0}
    for known, row in read_pending(options.paths.input, journal.pending(2**62, 0, 1)):
        request = check(row)
        try:
            length = len(encode(encoder, request))
        except RequestError as error:
            problems.add(known.line, error.message)
            continue
        room = encoder.max_model_len - length
        wanted = request.sampling.max_tokens
        counted["prompt"] += length
        counted["longest_prompt"] = max(counted["longest_prompt"], length)
        counted["completion_at_most"] += request.sampling.n * (
            room if wanted is None else min(room, wanted)
        )
    return counted
