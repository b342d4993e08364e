"""What watchers are told, and that results are saved while a step is under way."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest

from seesaw.batch import runner
from seesaw.batch.progress import (
    PlainReporter,
    Progress,
    Rates,
    Speedometer,
    describe,
    describe_engine,
)
from seesaw.outputs import EngineStatus
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


def status_of(**more: Any) -> EngineStatus:
    given: dict[str, Any] = {
        "phase": "decode", "layout": "tp2", "device_share": 0.8, "tier_share": 0.45,
        "num_begun": 10, "num_waiting": 5, "prompt_tokens": 3000, "decoded_tokens": 500,
        "prefill_s": 6.0, "decode_s": 20.0,
    }  # fmt: skip
    return EngineStatus(**(given | more))


def test_a_line_says_where_the_engine_stands_and_how_long_it_will_take() -> None:
    now = Progress(
        phase="run", total_rows=100, answered_rows=20, running_rows=15, completion_tokens=400,
        elapsed_s=26.0, run_rows=20, engine=status_of(), rates=Rates(1234.4, 56.0),
    )  # fmt: skip
    # 80 answers of 25 tokens less the 100 of those that run, at 40 ms each; 70 prompts of the 30
    # begun so far, at 200 ms each.
    assert now.left_s == pytest.approx((80 * 25 - 100) * 0.04 + 70 * 0.2)
    assert describe(now) == (
        "run: 20/100 rows, 15 running, 400 tokens out, decode in tp2, tier 45%, device 80%, "
        "1,234 tokens/s in, 56 out, 0:00:26, about 0:01:30 left"
    )


def test_nothing_is_foretold_before_a_row_is_answered_and_mixed_steps_have_no_phase() -> None:
    first = Progress(phase="run", total_rows=9, engine=status_of())
    assert first.left_s is None
    assert describe_engine(
        Progress(phase="run", total_rows=9, engine=status_of(phase="", tier_share=None))
    ) == ["tp2", "device 80%"]
    done = Progress(
        phase="run", total_rows=9, answered_rows=9, run_rows=9, completion_tokens=500,
        engine=status_of(num_begun=0, num_waiting=0),
    )  # fmt: skip
    assert done.left_s == 0.0
    # Of the last row are 300 tokens there, where answers had 62 so far.
    longer = Progress(
        phase="run", total_rows=9, answered_rows=8, run_rows=8, running_rows=1,
        completion_tokens=200, engine=status_of(num_begun=1, num_waiting=0),
    )  # fmt: skip
    assert longer.left_s is None
    assert "left" not in describe(longer)


def test_rates_are_of_the_last_seconds_of_one_engine() -> None:
    speed = Speedometer()
    assert speed.rates(status_of(prompt_tokens=0, decoded_tokens=0), 100.0) == (0.0, 0.0)
    assert speed.rates(status_of(prompt_tokens=50, decoded_tokens=20), 110.0) == (5.0, 2.0)
    assert speed.rates(status_of(prompt_tokens=50, decoded_tokens=60), 120.0) == (0.0, 4.0)
    # a new engine begins from nothing
    assert speed.rates(status_of(prompt_tokens=0, decoded_tokens=0), 121.0) == (0.0, 0.0)


def test_a_job_tells_where_its_engine_stands(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "PROGRESS_S", 0.0)
    jobs.write(*(chat(f"r{i}", f"question {i}") for i in range(30)))
    jobs.run()
    told = [now for now in jobs.said.moments if now.phase == "run" and now.engine is not None]
    assert told, "no moment of the run had a status"
    assert all(now.engine and now.engine.layout == "tp2" and now.rates for now in told)
