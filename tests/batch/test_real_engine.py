"""run-batch as its users run it: the command line, the real engine, a tiny model, and kills."""

from __future__ import annotations

import json
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

NUM_ROWS = 100
KILLS = 10
KILLS_OF_RUNNING_ROWS = (2, 5, 9)


def start(model: Path, source: Path, answers: Path) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "seesaw", "run-batch", "-i", source, "-o", answers, "--model", model,
        "--dtype", "float32", "--device", "cpu", "--device-memory", "256MiB", "--max-num-seqs", "8",
    ]  # fmt: skip
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


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
            # by what is saved, not by the clock: how fast rows run differs tenfold with the load
            while process.poll() is None and len(whole_lines(answers)) <= len(seen):
                time.sleep(0.01)
            time.sleep(random.uniform(0.0, 0.3))
            process.kill()
        elif kills < KILLS:  # while Python, the model and the journal are loaded, or just after
            time.sleep(random.uniform(0.0, before_s + 0.3))
            process.kill()
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
