"""What watchers are told, and that results are saved while a step is under way."""

from __future__ import annotations

import io
import time

import pytest

from seesaw.batch.progress import PlainReporter, Progress, describe
from tests.batch.helpers import Jobs, chat


def test_a_line_of_progress() -> None:
    now = Progress(
        phase="run", total_rows=2000, answered_rows=1100, failed_rows=3, running_rows=48,
        prompt_tokens=9, completion_tokens=1234, elapsed_s=3670.9,
    )  # fmt: skip
    assert describe(now) == (
        "run: 1,103/2,000 rows (3 failed), 48 running, 1,234 tokens out, 0.3 tokens/s, 1:01:10"
    )
    assert describe(Progress(phase="check", total_rows=None, read_rows=5)) == (
        "check: 5 rows read, 0:00:00"
    )
    assert describe(Progress(phase="run", total_rows=0)).startswith("run: 0/0 rows, 0 running")


def test_the_plain_reporter_is_quiet_between_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    moments_s = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: moments_s[-1])
    stream = io.StringIO()
    reporter = PlainReporter(stream)
    for now_s in (100.1, 129.9, 130.0, 130.1, 159.9, 160.1):
        moments_s.append(now_s)
        reporter.progress(Progress(phase="run", total_rows=9))
    assert stream.getvalue().count("\n") == 2
    reporter.message("said at once")
    assert stream.getvalue().endswith("said at once\n")


def test_results_are_saved_while_a_long_step_is_under_way(jobs: Jobs) -> None:
    jobs.write(*(chat(f"r{i}", f"question {i}") for i in range(30)))
    saved = []

    def long_step(point: str) -> None:
        if point == "step" and jobs.said.moments and jobs.engines and not saved:
            engine = jobs.engines[0]
            if engine.num_finished == 0:
                return
            deadline = time.monotonic() + 60
            while not jobs.answers.read_bytes() and time.monotonic() < deadline:
                time.sleep(0.01)
            saved.append(jobs.answers.read_bytes())

    jobs.run(engine={"hook": long_step})
    assert saved[0], "nothing was saved before the step ended"
    assert saved[0].endswith(b"\n")
