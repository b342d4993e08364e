"""Signals and locks, with real processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.batch.helpers import chat, ids, write_rows

FAKE_JOB = Path(__file__).parent / "fake_job.py"
DEADLINE_S = 60


def start(
    folder: Path, num_rows: int = 200, step_s: float = 0.02, **job: Any
) -> subprocess.Popen[str]:
    rows = [chat(f"r{i}", f"question {i}") for i in range(num_rows)]
    options = {
        "input": str(write_rows(folder / "in.jsonl", rows)),
        "output": str(folder / "out.jsonl"),
        **job,
    }
    settings = {"job": options, "engine": {"max_num_seqs": 4, "step_s": step_s}}
    return subprocess.Popen(
        [sys.executable, str(FAKE_JOB), json.dumps(settings)], stderr=subprocess.PIPE, text=True
    )


def wait_for(path: Path, size: int = 1) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not path.exists() or path.stat().st_size < size:
        assert time.monotonic() < deadline, f"{path.name} did not grow"
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_saves_and_tells_how_to_resume(
    tmp_path: Path, number: int, code: int
) -> None:
    process = start(tmp_path, resume_command="seesaw run-batch again")
    wait_for(tmp_path / "out.jsonl")
    process.send_signal(number)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code
    assert "rows are answered and saved in" in err
    assert err.rstrip().endswith("Resume: seesaw run-batch again")
    assert "Traceback" not in err
    saved = (tmp_path / "out.jsonl").read_bytes()
    summary = json.loads((tmp_path / "out.summary.json").read_text())
    assert (summary["status"], summary["exit_code"]) == ("interrupted", code)
    assert summary["rows"]["answered"] == len(saved.splitlines()) > 0
    process = start(tmp_path, step_s=0)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err
    assert ids(tmp_path / "out.jsonl") == [f"r{i}" for i in range(200)]
    assert set(saved.splitlines()) <= set((tmp_path / "out.jsonl").read_bytes().splitlines())


def test_the_second_signal_exits_in_the_middle_of_a_step(tmp_path: Path) -> None:
    process = start(tmp_path, step_s=600)
    wait_for(tmp_path / "out.journal.sqlite-wal")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None, "the first signal waits for the step"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130


def test_a_signal_while_the_model_loads_stops_at_once(tmp_path: Path) -> None:
    script = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from tests.batch.fake_job import run_job\n"
        "def hook(point):\n"
        "    if point == 'load':\n"
        "        print('loading', flush=True); time.sleep(600)\n"
        "sys.exit(run_job({'input': sys.argv[2], 'output': sys.argv[3]}, {'hook': hook}))\n"
    )
    source = write_rows(tmp_path / "in.jsonl", [chat("a")])
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(FAKE_JOB.parents[2]), source, tmp_path / "out.jsonl"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 143, err
    assert "0 of 1 rows are answered" in err


def test_a_second_run_is_refused_and_told_the_pid(tmp_path: Path) -> None:
    first = start(tmp_path)
    try:
        wait_for(tmp_path / "out.jsonl")
        second = start(tmp_path, overwrite=True)
        _, err = second.communicate(timeout=DEADLINE_S)
        assert second.returncode == 1
        assert f"is in use by process {first.pid} " in err
    finally:
        first.kill()
        first.communicate()
    third = start(tmp_path, step_s=0)
    _, err = third.communicate(timeout=DEADLINE_S)
    assert third.returncode == 0, err


def test_exit_codes_of_real_processes(tmp_path: Path) -> None:
    codes = []
    for job in ({}, {"limit": 0}, {"input": str(tmp_path / "nowhere")}):
        process = start(tmp_path, 3, 0, **job)
        _, err = process.communicate(timeout=DEADLINE_S)
        assert "Traceback" not in err
        codes.append(process.returncode)
    assert codes == [0, 2, 2]


def test_a_small_job_loads_nothing_heavy(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [chat("a")])
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.batch.fake_job import run_job\n"
        "code = run_job({'input': sys.argv[2], 'output': sys.argv[3]})\n"
        "heavy = {'torch', 'numpy', 'rich', 'click', 'asyncio'} & set(sys.modules)\n"
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", script, str(FAKE_JOB.parents[2]), source, tmp_path / "out.jsonl"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
