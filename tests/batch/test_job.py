"""Whole jobs with the fake engine: answers, limits, dry runs, bad settings, exit codes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from seesaw.api.flags import flag_fields
from seesaw.batch.job import exit_code_of_error
from seesaw.batch.options import JobOptions
from seesaw.errors import ConfigError, JobError
from tests.batch.fake_engine import FakeEngine
from tests.batch.helpers import Jobs, chat, completion, ids, questions, read_rows


def test_every_row_is_answered_once_in_input_order(jobs: Jobs) -> None:
    jobs.write(*questions(50), completion("last", "once"))
    result = jobs.run()
    assert (result.status, result.exit_code) == ("complete", 0)
    assert ids(jobs.answers) == [*(f"r{i}" for i in range(50)), "last"]
    assert not jobs.errors.exists()
    assert jobs.summary["rows"] == {
        "total": 51, "answered": 51, "failed": 0, "pending": 0, "named_another_model": 0,
    }  # fmt: skip
    assert jobs.summary["this_run"]["answered_rows"] == 51
    assert jobs.engines[0].most_admitted <= jobs.engines[0].max_num_queued
    assert jobs.engines[0].num_shutdowns == 1


def test_only_the_named_files_are_left(jobs: Jobs) -> None:
    jobs.write(*questions(3), "{bad")
    jobs.run()
    left = {p.name for p in jobs.folder.iterdir()}
    assert left == {
        "in.jsonl", "out.jsonl", "out.errors.jsonl", "out.summary.json", "out.journal.sqlite",
    }  # fmt: skip


def test_an_empty_input_is_a_complete_job(jobs: Jobs) -> None:
    jobs.write("", "  ")
    assert jobs.run().status == "complete"
    assert jobs.answers.read_bytes() == b""
    assert not jobs.engines
    assert jobs.said.messages == ["the input has no row: there is nothing to answer"]
    assert jobs.run().status == "nothing to do"
    assert jobs.said.messages == ["nothing to do: the input has no row"]


def test_the_first_row_that_failed_is_told_beside_their_number(jobs: Jobs) -> None:
    jobs.write(*questions(2), chat("a", stream=True), "{bad")
    assert jobs.run().exit_code == 3
    (told,) = [one for one in jobs.said.messages if "rows failed" in one]
    assert told.startswith(f"2 rows failed: {jobs.folder / 'out.errors.jsonl'}, the first: line 3:")
    assert "stream=True" in told


def test_gzip_bom_blank_lines_and_crlf(jobs: Jobs) -> None:
    text = "\ufeff\r\n" + "\r\n\n".join(json.dumps(r) for r in questions(3))
    jobs.input.write_bytes(gzip.compress(text[:100].encode()) + gzip.compress(text[100:].encode()))
    assert jobs.run().exit_code == 0
    assert ids(jobs.answers) == ["r0", "r1", "r2"]
    jobs.input.write_bytes(text.removeprefix("\ufeff\r\n").encode("utf-8-sig"))
    assert jobs.run().status == "complete"  # line numbers moved, so the files are written again
    assert ids(jobs.answers) == ["r0", "r1", "r2"]


def test_fail_fast_stops_before_the_engine_for_a_row_that_is_wrong(jobs: Jobs) -> None:
    jobs.write(*questions(3), chat("x", tools=[{}]), "{bad")
    with pytest.raises(JobError, match=r"line 4 \(custom_id 'x'\) failed: tools.*fail_fast"):
        jobs.run(fail_fast=True)
    assert not jobs.engines
    assert jobs.summary["status"] == "failed"
    assert jobs.summary["exit_code"] == 1
    assert len(read_rows(jobs.errors)) == 2
    assert jobs.run().exit_code == 3


def test_fail_fast_stops_at_a_row_that_fails_in_the_run(jobs: Jobs) -> None:
    jobs.write(*questions(30), chat("x", "y" * 600), *(chat(f"s{i}") for i in range(30)))
    with pytest.raises(JobError, match=r"line 31.*context limit"):
        jobs.run(fail_fast=True)
    answered = ids(jobs.answers)
    assert 0 < len(answered) < 31
    assert ids(jobs.errors) == ["x"]
    assert jobs.run().exit_code == 3
    assert len(ids(jobs.answers)) == 60


def test_dry_run_counts_and_leaves_nothing(jobs: Jobs) -> None:
    jobs.write(
        completion("a", "x" * 10, max_tokens=5),
        completion("b", [1, 2, 3]),
        completion("c", "y" * 600),
        chat("d", stream=True, user="me"),
        "{bad",
    )
    result = jobs.run(dry_run=True)
    assert (result.status, result.exit_code) == ("checked", 3)
    assert result.summary["rows"] == {
        "total": 5, "valid": 2, "failed": 3, "named_another_model": 0,
    }  # fmt: skip
    assert result.summary["tokens"] == {
        "prompt": 13, "longest_prompt": 10, "completion_at_most": 5 + 512 - 3,
    }  # fmt: skip
    assert "line 3: the prompt has 600 tokens" in jobs.said.text
    assert "line 4: stream=True is not supported yet" in jobs.said.text
    assert "line 5: the line is not valid JSON" in jobs.said.text
    assert not jobs.engines
    assert [p.name for p in jobs.folder.iterdir()] == ["in.jsonl"]
    jobs.write(*questions(2))
    assert jobs.run(dry_run=True).exit_code == 0


def test_dry_run_shows_twenty_bad_rows_and_counts_all(jobs: Jobs) -> None:
    jobs.write(*["{bad"] * 50)
    assert jobs.run(dry_run=True).summary["rows"]["failed"] == 50
    assert len([m for m in jobs.said.messages if m.startswith("line ")]) == 20


def test_tokens_that_the_model_does_not_have_are_found_without_an_engine(jobs: Jobs) -> None:
    jobs.write(chat("a"), chat("b", stop_token_ids=[0x110000]))
    assert jobs.run(dry_run=True).summary["rows"]["failed"] == 1
    assert "line 2: stop_token_ids holds 1114112" in jobs.said.text
    assert jobs.run().exit_code == 3
    assert ids(jobs.answers) == ["a"]


def test_dry_run_works_beside_a_finished_job(jobs: Jobs) -> None:
    jobs.write(*questions(2))
    jobs.run()
    before = jobs.contents()
    assert jobs.run(dry_run=True).exit_code == 0
    assert jobs.contents() == before


def test_truncation_is_never_silent(jobs: Jobs) -> None:
    jobs.write(*questions(3), chat("short", max_tokens=1))
    jobs.run()
    assert jobs.summary["finish_reasons"] == {"length": 1, "stop": 3}
    assert jobs.summary["truncated_rows"] == 1
    assert "1 answer was cut off at its token limit" in jobs.said.text


def test_other_models_and_ignored_fields_are_counted(jobs: Jobs) -> None:
    jobs.write(
        chat("a", model="gpt-4o", user="me", store=True), chat("b", user="me", metadata={"k": "v"})
    )
    assert jobs.run().exit_code == 0
    assert jobs.summary["rows"]["named_another_model"] == 1
    assert jobs.summary["ignored_fields"] == {"user": 2, "metadata": 1, "store": 1}
    assert "1 row named another model" in jobs.said.text
    assert "2 rows had a field 'user', which was ignored" in jobs.said.text


def test_served_model_name_is_checked_and_answered_with(jobs: Jobs) -> None:
    jobs.write(chat("a", model="mine"), chat("b", model="other"), completion("c"))
    assert jobs.run(served_model_name="mine").exit_code == 3
    assert ids(jobs.answers) == ["a", "c"]
    assert {r["response"]["body"]["model"] for r in read_rows(jobs.answers)} == {"mine"}
    (error,) = read_rows(jobs.errors)
    assert error["response"]["body"]["error"]["code"] == "model_not_found"


def test_a_journal_elsewhere(jobs: Jobs, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    jobs.write(*questions(2))
    jobs.run(journal=str(tmp_path / "state" / "j.db"))
    assert not jobs.journal.exists()
    assert jobs.run(journal=str(tmp_path / "state" / "j.db")).status == "nothing to do"
    with pytest.raises(ConfigError, match="knows nothing of it"):
        jobs.run()


def test_progress_is_told(jobs: Jobs) -> None:
    jobs.write(*questions(60), "{bad")
    jobs.run(engine={"step_s": 0.02})
    last = jobs.said.moments[-1]
    assert (last.phase, last.total_rows, last.failed_rows) == ("run", 61, 1)
    assert [m.answered_rows for m in jobs.said.moments] == sorted(
        m.answered_rows for m in jobs.said.moments
    )
    assert any(m.running_rows for m in jobs.said.moments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input": "-"}, "must be able to read its input again"),
        ({"output": "-"}, "a plain file is expected"),
        ({"output": "o.jsonl.gz"}, "Compress it afterwards"),
        ({"limit": 0}, "limit=0: expected an integer from 1"),
        ({"max_restarts": -1}, "max_restarts=-1"),
        ({"overwrite": True, "redo_changed": True}, "Give one of them"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        JobOptions(**{"input": "i", "output": "o", **options})
    assert exit_code_of_error(caught.value) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input": "missing.jsonl"}, "No such file"),
        ({"input": "."}, "not a regular file"),
        ({"output": "in.jsonl"}, "two things of this job"),
        ({"journal": "out.jsonl"}, "two things of this job"),
        ({"output": "folder"}, "is a folder"),
        ({"output": "missing/out.jsonl"}, "does not exist"),
    ],
)
def test_files_that_cannot_work(jobs: Jobs, options: dict[str, str], message: str) -> None:
    jobs.write(*questions(1))
    (jobs.folder / "folder").mkdir()
    absolute = {name: str(jobs.folder / value) for name, value in options.items()}
    with pytest.raises(ConfigError, match=message):
        jobs.run(**absolute)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(b"x" * 1000)[:-20], "Is the file complete"),
        (b"\x1f\x8b" + b"garbage" * 9, "cannot be read after line 0"),
        ("{}".encode("utf-16"), "is UTF-16, expected UTF-8"),
    ],
)
def test_inputs_that_cannot_be_read(jobs: Jobs, data: bytes, message: str) -> None:
    jobs.input.write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        jobs.run()
    assert not jobs.answers.exists()


def test_a_full_disk_is_a_job_error_and_loses_nothing(jobs: Jobs) -> None:
    jobs.write(*questions(40))

    def fill(point: str) -> None:
        if point == "step" and not jobs.answers.is_dir():
            jobs.answers.unlink()
            jobs.answers.mkdir()

    with pytest.raises(JobError, match=r"out\.jsonl.*The journal is safe"):
        jobs.run(engine={"hook": fill, "step_s": 0.01})
    jobs.answers.rmdir()
    jobs.run()
    assert ids(jobs.answers) == [f"r{i}" for i in range(40)]


def test_options_make_flags() -> None:
    flags = {field.name: help for field, _, help in flag_fields(JobOptions)}
    assert flags.keys() >= {"input", "output", "journal", "limit", "dry_run", "max_restarts"}
    assert not {"seed", "resume_command"} & flags.keys()
    assert all(flags.values())


def test_fake_answers_differ_by_prompt() -> None:
    """Else the tests above could not see rows mixed up."""
    engine = FakeEngine()
    assert engine.encode_prompt("a") != engine.encode_prompt("b")
