"""`seesaw run-batch` end to end over a tiny checkpoint: flags in, files, codes and JSON out."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seesaw.api.batch_lengths import MOST_SAMPLED, sample_lengths
from seesaw.api.commands.run_batch import _resume_command
from seesaw.engine import engine
from tests.api.command import run

SETTINGS = ("--device-memory", "256MiB", "--dtype", "float32")


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Callable[..., Path]) -> str:
    return str(tiny_checkpoint("llama"))


@pytest.fixture
def job(tmp_path: Path, model: str) -> list[str]:
    """The arguments of a job of three good rows."""
    write_rows(tmp_path / "in.jsonl", [{"max_tokens": 4}] * 3)
    files = ["-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl")]
    return ["run-batch", *files, "--model", model, *SETTINGS]


def write_rows(path: Path, bodies: list[dict[str, Any]]) -> None:
    rows = [
        {
            "custom_id": f"row-{number}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": f"The dog {number}", "temperature": 0, **body},
        }
        for number, body in enumerate(bodies)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_an_engine_that_chooses_layouts_is_told_of_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    bodies = [{"max_tokens": number % 7 + 1} for number in range(4999)]
    write_rows(path, [{}, *bodies, {"max_tokens": 0}, {"max_tokens": 3, "n": 4}])
    with path.open("a") as file:
        file.write("no JSON\n")
    lengths, num_answers = sample_lengths(path)
    assert MOST_SAMPLED / 2 <= len(lengths) <= MOST_SAMPLED
    assert 4999 <= num_answers <= 5010
    assert {answer for _, answer in lengths} == set(range(1, 8))
    assert {prompt for prompt, _ in lengths} == {3}  # of 9 to 12 characters
    write_rows(path, [{}] * 3)
    assert sample_lengths(path) == ([], 3)


def test_a_job_and_its_resume(
    job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*job, "--output-json", "-"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["rows"]["answered"] == 3
    answers = (tmp_path / "out.jsonl").read_bytes()
    assert [json.loads(line)["custom_id"] for line in answers.splitlines()] == [
        "row-0", "row-1", "row-2",
    ]  # fmt: skip
    assert run(job) == 0
    captured = capsys.readouterr()
    assert "nothing to do" in captured.err
    assert captured.out == ""
    assert (tmp_path / "out.jsonl").read_bytes() == answers


def test_failed_rows_exit_with_3(
    job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "in.jsonl", [{"max_tokens": 2}, {"max_tokens": -1}])
    assert run(job) == 3
    assert "out.errors.jsonl" in capsys.readouterr().err


def test_dry_run_makes_no_engine(
    job: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "Engine", lambda *_, **__: pytest.fail("an engine was made"))
    assert run([*job, "--dry-run"]) == 0
    assert not (tmp_path / "out.jsonl").exists()


def test_flags_reach_the_job(job: list[str], tmp_path: Path) -> None:
    assert run([*job, "--limit", "1", "--journal", str(tmp_path / "elsewhere.sqlite")]) == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 1
    assert (tmp_path / "elsewhere.sqlite").exists()


def test_on_a_terminal_a_bar_is_drawn_and_standard_output_stays_clean(job: list[str]) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "seesaw", *job, "--output-json", "-"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "xterm"},
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # Linux: the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    out, _ = process.communicate()
    assert process.returncode == 0, shown.decode()
    assert json.loads(out)["rows"]["answered"] == 3
    assert "loading the model" in shown.decode()
    assert "3 of 3 rows answered" in shown.decode()
    assert b"\x1b[3" not in shown  # NO_COLOR: the cursor moves, nothing is coloured


def test_the_resume_command_can_be_pasted_and_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "bin" / "seesaw"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    argv = [str(script), "run-batch", "-i", "my file.jsonl", "--overwrite", "-o", "out.jsonl"]
    monkeypatch.setenv("PATH", "/nowhere")
    assert _resume_command(argv) == f"{script} run-batch -i 'my file.jsonl' -o out.jsonl"
    monkeypatch.setenv("PATH", str(script.parent))
    assert _resume_command(argv) == "seesaw run-batch -i 'my file.jsonl' -o out.jsonl"
    module = ["/lib/seesaw/__main__.py", "run-batch"]
    assert _resume_command(module) == f"{sys.executable} -m seesaw run-batch"


@pytest.mark.parametrize(
    "name", ["in.jsonl", "out.jsonl", "out.errors.jsonl", "out.summary.json", "./out.jsonl"]
)
def test_the_json_never_takes_the_place_of_a_file_of_the_job(
    job: list[str], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (tmp_path / "in.jsonl").read_bytes()
    assert run([*job, "--output-json", f"{tmp_path}/{name}"]) == 2
    assert "is a file of this job" in capsys.readouterr().err
    assert (tmp_path / "in.jsonl").read_bytes() == before
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("flag", ["-i", "-o", "--journal"])
@pytest.mark.parametrize("name", ["", ".", "/"])
def test_a_name_that_no_file_can_have_is_refused(
    job: list[str], flag: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*job, flag, name]) == 2
    assert "expected the path of a file" in capsys.readouterr().err
