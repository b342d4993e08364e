"""The live line of a batch job: drawn on a terminal, gone at the end, messages kept."""

from __future__ import annotations

import io
import re

from rich.cells import cell_len
from rich.console import Console

from seesaw.api.batch_progress import TerminalReporter, describe_detail
from seesaw.batch.progress import Progress, Rates
from seesaw.outputs import EngineStatus


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


def test_a_narrow_terminal_costs_the_details_and_nothing_else() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, no_color=True)
    status = EngineStatus(
        num_waiting=0, num_begun=1, phase="decode", layout="dp1-tp8-pp1", tier_share=0.5,
        device_share=0.5, prompt_tokens=900, decoded_tokens=100, prefill_s=1.0, decode_s=4000.0,
    )  # fmt: skip
    with TerminalReporter(console) as reporter:
        reporter.progress(
            Progress(
                phase="run", total_rows=12_000, answered_rows=6_000, run_rows=6_000,
                failed_rows=2, running_rows=1, completion_tokens=100, elapsed_s=4001.0,
                engine=status, rates=Rates(12_345.0, 1_234.0),
            )
        )  # fmt: skip
    shown = screen.getvalue()
    assert "6002/12000" in shown
    assert "decode in dp1-tp8" in shown
    assert "1:06:3" in shown, "the time that is left"
    assert "…" in shown
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown).replace("\r", "\n").splitlines()
    assert all(cell_len(line) <= 80 for line in lines)


def test_detail_before_anything_is_known() -> None:
    assert describe_detail(Progress(phase="check", total_rows=None)) == ""
    assert describe_detail(Progress(phase="run", total_rows=3, elapsed_s=0.0)) == ""
