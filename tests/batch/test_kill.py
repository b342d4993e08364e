"""A job that is killed a thousand times: nothing lost, nothing doubled, finished rows unchanged."""

from __future__ import annotations

import collections
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.batch.helpers import chat, ids, read_rows, write_rows
from tests.batch.killed_jobs import PHASES, whole_lines

HERE = Path(__file__).parent
KILLS = 1000
MOST_S = 240


@pytest.mark.slow
def test_a_thousand_kills(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, str(HERE / "killed_jobs.py"), str(tmp_path / str(i)),
             str(KILLS // 2), str(random.randrange(2**32))],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    kills, hits = 0, collections.Counter[str]()
    for worker in workers:
        out, err = worker.communicate(timeout=MOST_S)
        assert worker.returncode == 0, err
        report = json.loads(out)
        kills += report["kills"]
        hits.update(report["hits"])
    assert kills >= KILLS
    for phase in (*PHASES, "timed"):
        assert hits[phase] >= 10, f"the kills missed {phase}: {hits}"


def test_killed_processes_from_their_first_instruction_on(tmp_path: Path) -> None:
    """Whole processes: import, start and all, with the timing of the real program."""
    rows = [chat(f"r{i}", f"question {i}") for i in range(300)]
    options = {
        "input": str(write_rows(tmp_path / "in.jsonl", rows)),
        "output": str(tmp_path / "out.jsonl"),
    }
    settings = json.dumps({"job": options, "engine": {"max_num_seqs": 4, "step_s": 0.003}})
    seen: dict[str, bytes] = {}
    kills = 0
    while True:
        with subprocess.Popen(
            [sys.executable, str(HERE / "fake_job.py"), settings], stderr=subprocess.DEVNULL
        ) as process:
            time.sleep(random.uniform(0.05, 1.2))
            process.kill()
        if process.returncode != -signal.SIGKILL:
            break
        kills += 1
        now = whole_lines(tmp_path / "out.jsonl")
        assert seen.items() <= now.items()
        seen = now
    assert process.returncode == 0
    assert kills
    assert ids(tmp_path / "out.jsonl") == [row["custom_id"] for row in rows]
    assert all(row["response"]["status_code"] == 200 for row in read_rows(tmp_path / "out.jsonl"))
    assert seen.items() <= whole_lines(tmp_path / "out.jsonl").items()
