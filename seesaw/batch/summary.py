"""The summary of a job: `<stem>.summary.json` and the lines a person reads at the end."""

from __future__ import annotations

from typing import Any

from seesaw.batch.journal import ANSWERED, FAILED, PENDING, Journal
from seesaw.batch.runner import RunStats
from seesaw.batch.scan import FLAG_NAMES, ScanReport


def make_summary(journal: Journal, scan: ScanReport, stats: RunStats) -> dict[str, Any]:
    """Numbers over all runs of the job, and of this run under `this_run`. Tokens are those of
    answered rows.
    """
    counts, totals = journal.counts(), journal.totals()
    finish_reasons = journal.finish_reasons()
    flags = {name: totals[f"flag_{bit}"] for bit, name in enumerate(FLAG_NAMES)}
    return {
        "rows": {
            "total": sum(counts.values()),
            "answered": counts[ANSWERED],
            "failed": counts[FAILED],
            "pending": counts[PENDING],
            "named_another_model": flags.pop("other_model"),
        },
        "finish_reasons": finish_reasons,
        "truncated_rows": finish_reasons.get("length", 0),
        "ignored_fields": {name: rows for name, rows in flags.items() if rows},
        "tokens": {
            "prompt": totals["prompt_tokens"],
            "cached": totals["cached_tokens"],
            "completion": totals["completion_tokens"],
        },
        "this_run": {
            "new_rows": scan.new,
            "changed_rows": scan.changed,
            "retried_rows": scan.retried,
            "removed_rows": scan.removed,
            "removed_answers": scan.removed_answered,
            "answered_rows": stats.answered,
            "failed_rows": scan.failed + stats.failed,
            "prompt_tokens": stats.prompt_tokens,
            "completion_tokens": stats.completion_tokens,
            "engine_restarts": stats.restarts,
        },
    }


def describe_summary(summary: dict[str, Any], first_failure: str | None = None) -> list[str]:
    """The summary for people; what went wrong or was cut short has a line of its own.
    `first_failure`: what is wrong with the first row that failed."""
    rows, tokens, run = summary["rows"], summary["tokens"], summary["this_run"]
    if not rows["total"]:
        return ["the input has no row: there is nothing to answer"]
    lines = [
        f"{rows['answered']:,} of {rows['total']:,} rows answered: {tokens['prompt']:,} tokens in "
        f"({tokens['cached']:,} from the prefix cache), {tokens['completion']:,} tokens out"
    ]
    if run["completion_tokens"] and summary["times"]["run_s"] > 0:
        speed = run["completion_tokens"] / summary["times"]["run_s"]
        lines.append(
            f"this run: {_rows(run['answered_rows'])} in {summary['times']['run_s']:.1f} s, "
            f"{speed:,.1f} tokens/s out"
        )
    if cut := summary["truncated_rows"]:
        were, whose = ("answer was", "its") if cut == 1 else ("answers were", "their")
        lines.append(f"{cut:,} {were} cut off at {whose} token limit (finish_reason length)")
    if count := rows["failed"]:
        first = f", the first: {first_failure}" if first_failure else ""
        lines.append(f"{_rows(count)} failed: {summary['files'].get('errors')}{first}")
    if count := rows["pending"]:
        lines.append(f"{_rows(count)} {'is' if count == 1 else 'are'} left to run")
    if rows["named_another_model"]:
        lines.append(
            f"{_rows(rows['named_another_model'])} named another model and ran on "
            f"{summary['model']} (--served-model-name refuses them)"
        )
    for name, count in summary["ignored_fields"].items():
        lines.append(f"{_rows(count)} had a field {name!r}, which was ignored")
    return lines


def _rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"
