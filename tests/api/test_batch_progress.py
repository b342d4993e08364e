"""The live line of a batch job: drawn on a terminal, gone at the end, messages kept."""

from __future__ import annotations

import io

from rich.console import Console

from seesaw.api.batch_progress import TerminalReporter, describe_detail
from seesaw.batch.progress import Progress


def test_messages_stay_and_the_bar_goes() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, no_color=True)
    with TerminalReporter(console) as reporter:
        reporter.progress(Progress(phase="check", total_rows=None, read_rows=7))
        reporter.message("resuming: [3] rows")
        reporter.progress(Progress(phase="load", total_rows=10))
        reporter.loading(1, 4)
        reporter.progress(
            Progress(
                phase="run",
                total_rows=10,
                answered_rows=4,
                failed_rows=1,
                completion_tokens=600,
                elapsed_s=2.0,
            )
        )
    shown = screen.getvalue()
    assert "resuming: [3] rows" in shown
    assert "5/10" in shown
    assert "300 tokens/s, 1 failed" in shown
    assert shown.rstrip().endswith("\x1b[2K")  # the line of the bar is cleared


def test_detail_before_anything_is_known() -> None:
    assert describe_detail(Progress(phase="check", total_rows=None)) == ""
    assert describe_detail(Progress(phase="run", total_rows=3, elapsed_s=0.0)) == ""
