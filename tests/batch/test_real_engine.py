"""run-batch as its users run it: the command line, the real engine, a tiny model, and kills."""

from __future__ import annotations

import json
import math
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.batch.helpers import completion, ids, read_rows, write_rows
from tests.batch.killed_jobs import whole_lines, without_created

NUM_ROWS = 200
KILLS = 10
KILLS_OF_RUNNING_ROWS = (0, 4, 8)


def start(model: Path, source: Path, answers: Path) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "seesaw", "run-batch", "-i", source, "-o", answers, "--model", model,
        "--dtype", "float32", "--device", "cpu", "--device-memory", "256MiB", "--max-num-seqs", "2",
    ]  # fmt: skip
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def kill_at_growth(
    process: subprocess.Popen[str], answers: Path, saved: int, within_s: float
) -> None:
    """Kill once more than `saved` answers are on disk, or after `within_s`, whichever is first.

    By what is saved and not by the clock alone: how fast rows run differs tenfold with the machine
    and its load, and a kill that comes after the last row tests nothing.
    """
    began_s = time.monotonic()
    while process.poll() is None and time.monotonic() - began_s < within_s:
        if len(whole_lines(answers)) > saved:
            break
        time.sleep(0.002)
    process.kill()


@pytest.mark.slow
def test_ten_kills_change_no_answer(tmp_path: Path, tiny_checkpoint: Callable[..., Path]) -> None:
    model = tiny_checkpoint("llama")
    rows: list[dict[str, Any]] = [
        completion(
            f"r{i}",
            [random.randrange(3, 90) for _ in range(random.randrange(1, 60))],
            max_tokens=random.randrange(1, 80),
            ignore_eos=True,
            temperature=random.choice([0.0, 1.0]),
        )
        for i in range(NUM_ROWS)
    ]
    rows[50]["body"]["temperature"] = "hot"
    source = write_rows(tmp_path / "in.jsonl", rows)

    began_s = time.monotonic()
    whole = start(model, source, tmp_path / "reference.jsonl")
    _, err = whole.communicate()
    assert whole.returncode == 3, err
    whole_s = time.monotonic() - began_s
    summary = json.loads((tmp_path / "reference.summary.json").read_text())
    before_s = whole_s - summary["times"]["run_s"]

    answers = tmp_path / "out.jsonl"
    seen: dict[str, bytes] = {}
    kills = grown = 0
    while True:
        process = start(model, source, answers)
        if kills in KILLS_OF_RUNNING_ROWS:
            some_later = len(seen) + random.randrange(NUM_ROWS // 10)
            kill_at_growth(process, answers, some_later, within_s=math.inf)
        elif kills < KILLS:  # while Python, the model and the journal are loaded, or just after
            kill_at_growth(process, answers, len(seen), random.uniform(0.0, before_s + 0.3))
        _, err = process.communicate()
        now = whole_lines(answers)
        assert seen.items() <= now.items(), "a row was lost or altered"
        grown += len(now) > len(seen)
        seen = now
        if process.returncode != -signal.SIGKILL:
            break
        kills += 1
    assert process.returncode == 3, err
    assert grown > 1, "no kill came while rows were running"
    assert ids(answers) == [f"r{i}" for i in range(NUM_ROWS) if i != 50]
    assert without_created(answers) == without_created(tmp_path / "reference.jsonl")
    assert read_rows(tmp_path / "out.errors.jsonl") == read_rows(
        tmp_path / "reference.errors.jsonl"
    )
