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


def describe_summary(summary: dict[str, Any]) -> list[str]:
    """The summary for people; what went wrong or was cut short has a line of its own."""
    rows, tokens, run = summary["rows"], summary["tokens"], summary["this_run"]
    lines = [
        f"{rows['answered']:,} of {rows['total']:,} rows answered: {tokens['prompt']:,} tokens in "
        f"({tokens['cached']:,} from the prefix cache), {tokens['completion']:,} tokens out"
    ]
    if run["completion_tokens"] and summary["times"]["run_s"] > 0:
        speed = run["completion_tokens"] / summary["times"]["run_s"]
        lines.append(
            f"this run: {run['answered_rows']:,} rows in {summary['times']['run_s']:.1f} s, "
            f"{speed:,.1f} tokens/s out"
        )
    if summary["truncated_rows"]:
        lines.append(
            f"{summary['truncated_rows']:,} answers were cut off at their token limit "
            "(finish_reason length)"
        )
    if rows["failed"]:
        lines.append(f"{rows['failed']:,} rows failed: {summary['files'].get('errors')}")
    if rows["pending"]:
        lines.append(f"{rows['pending']:,} rows are left to run")
    if rows["named_another_model"]:
        lines.append(
            f"{rows['named_another_model']:,} rows named another model and ran on "
            f"{summary['model']} (--served-model-name refuses them)"
        )
    for name, count in summary["ignored_fields"].items():
        lines.append(f"{count:,} rows had a field {name!r}, which was ignored")
    return lines
