"""Whole jobs with the fake engine: answers, resume, changes of the input, limits, exit codes."""

from __future__ import annotations

import gzip
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from seesaw.batch.job import exit_code_of_error
from seesaw.batch.options import JobOptions
from seesaw.errors import ConfigError, JobError
from tests.batch.fake_engine import FakeEngine
from tests.batch.helpers import Jobs, chat, completion, ids, read_rows, write_rows


def rows(n: int, **body: Any) -> list[dict[str, Any]]:
    return [chat(f"r{i}", f"question {i}", **body) for i in range(n)]


def test_every_row_is_answered_once_in_input_order(jobs: Jobs) -> None:
    jobs.write(*rows(50), completion("last", "once"))
    result = jobs.run()
    assert (result.status, result.exit_code) == ("complete", 0)
    assert ids(jobs.answers) == [*(f"r{i}" for i in range(50)), "last"]
    assert not jobs.errors.exists()
    assert jobs.summary["rows"] == {
        "total": 51, "answered": 51, "failed": 0, "pending": 0, "named_another_model": 0,
    }  # fmt: skip
    assert jobs.summary["this_run"]["answered_rows"] == 51
    assert jobs.engines[0].most_admitted <= 2 * jobs.engines[0].max_num_seqs
    assert jobs.engines[0].num_shutdowns == 1


def test_only_the_named_files_are_left(jobs: Jobs) -> None:
    jobs.write(*rows(3), "{bad")
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
    assert jobs.run().status == "nothing to do"


def test_gzip_bom_blank_lines_and_crlf(jobs: Jobs) -> None:
    text = "\ufeff\r\n" + "\r\n\n".join(json.dumps(r) for r in rows(3))
    jobs.input.write_bytes(gzip.compress(text[:100].encode()) + gzip.compress(text[100:].encode()))
    assert jobs.run().exit_code == 0
    assert ids(jobs.answers) == ["r0", "r1", "r2"]
    jobs.input.write_bytes(text.removeprefix("\ufeff\r\n").encode("utf-8-sig"))
    assert jobs.run().status == "complete"  # line numbers moved, so the files are written again
    assert ids(jobs.answers) == ["r0", "r1", "r2"]


def test_a_finished_job_has_nothing_to_do(jobs: Jobs) -> None:
    jobs.write(*rows(5), "{bad")
    assert jobs.run(now_s=1).exit_code == 3
    before, summary = jobs.contents(), jobs.summary
    result = jobs.run(now_s=2)
    assert (result.status, result.exit_code) == ("nothing to do", 3)
    assert (result.summary["status"], result.summary["rows"]["answered"]) == ("nothing to do", 5)
    assert "nothing to do" in jobs.said.text
    assert (jobs.contents(), jobs.summary) == (before, summary)
    assert not jobs.engines


@pytest.mark.parametrize("harm", ["delete", "truncate", "append", "delete errors"])
def test_harmed_files_are_written_again_without_an_engine(jobs: Jobs, harm: str) -> None:
    jobs.write(*rows(5), "{bad")
    jobs.run(now_s=1)
    before = jobs.contents()
    if harm == "delete":
        jobs.answers.unlink()
    elif harm == "truncate":
        jobs.answers.write_bytes(before["out.jsonl"][:-30])
    elif harm == "append":
        jobs.answers.write_bytes(before["out.jsonl"] + b'{"torn')
    else:
        jobs.errors.unlink()
    assert jobs.run(now_s=2).exit_code == 3
    assert jobs.contents() == before
    assert not jobs.engines


def test_new_rows_run_removed_rows_go_and_the_rest_is_untouched(jobs: Jobs) -> None:
    jobs.write(*rows(6))
    jobs.run(now_s=1)
    before = {row["custom_id"]: row for row in read_rows(jobs.answers)}
    old = rows(6)
    jobs.write(chat("new"), old[5], old[0], old[2])
    assert jobs.run(now_s=2).exit_code == 0
    after = {row["custom_id"]: row for row in read_rows(jobs.answers)}
    assert list(after) == ["new", "r5", "r0", "r2"]
    assert all(after[i] == before[i] for i in ("r5", "r0", "r2"))
    assert jobs.summary["this_run"]["removed_rows"] == 3
    assert jobs.summary["this_run"]["new_rows"] == 1
    assert "3 rows are no longer in the input" in jobs.said.text


def test_spelling_of_the_json_is_not_a_change(jobs: Jobs) -> None:
    jobs.write(*rows(2))
    jobs.run()
    row = rows(2)[1]
    shuffled = {name: row[name] for name in reversed(row)}
    jobs.write(rows(2)[0], json.dumps(shuffled, indent=None, separators=(" ,", " : ")))
    assert jobs.run().status == "nothing to do"


def test_changed_rows_are_refused_with_their_count_then_redone(jobs: Jobs) -> None:
    jobs.write(*rows(5))
    jobs.run(now_s=1)
    before, summary = jobs.contents(), jobs.summary
    changed = rows(5)
    changed[1]["body"]["max_tokens"] = 2
    changed[3] = chat("r3", "another question")
    jobs.write(*changed, chat("new"))
    with pytest.raises(JobError, match=r"2 of 5 answered rows have changed.*--redo-changed"):
        jobs.run(now_s=2)
    assert (jobs.contents(), jobs.summary) == (before, summary)
    jobs.write(*rows(5))
    assert jobs.run(now_s=2).status == "nothing to do", "a refusal leaves no trace"
    jobs.write(*changed, chat("new"))
    assert jobs.run(now_s=3, redo_changed=True).exit_code == 0
    made = {r["custom_id"]: r["response"]["body"]["created"] for r in read_rows(jobs.answers)}
    assert made == {"r0": 1, "r1": 3, "r2": 1, "r3": 3, "r4": 1, "new": 3}


def test_a_corrected_row_runs_without_a_flag(jobs: Jobs) -> None:
    jobs.write(*rows(2), chat("x", tools=[{}]), "{bad")
    assert jobs.run(now_s=1).exit_code == 3
    jobs.write(*rows(2), chat("x"), chat("was bad"))
    assert jobs.run(now_s=2).exit_code == 0
    assert ids(jobs.answers) == ["r0", "r1", "x", "was bad"]
    assert not jobs.errors.exists()


def test_a_broken_line_that_goes_away_leaves_the_errors_file(jobs: Jobs) -> None:
    jobs.write(*rows(2), "{bad", "{worse")
    jobs.run()
    assert len(read_rows(jobs.errors)) == 2
    jobs.write(*rows(2), "{bad")
    assert jobs.run().exit_code == 3
    assert len(read_rows(jobs.errors)) == 1
    jobs.write(*rows(2))
    assert jobs.run().exit_code == 0
    assert not jobs.errors.exists()


@pytest.mark.parametrize(
    "change", [{"version": "2"}, {"temperature": 0.5}], ids=["model", "sampling"]
)
def test_a_changed_model_is_refused_then_redone(jobs: Jobs, change: dict[str, Any]) -> None:
    jobs.write(*rows(4), "{bad")
    jobs.run(now_s=1)
    with pytest.raises(JobError, match=r"model or its sampling changed since 4 rows.*--overwrite"):
        jobs.run(now_s=2, encoder=change)
    assert jobs.run(now_s=2).status == "nothing to do"
    jobs.run(now_s=3, encoder=change, redo_changed=True)
    assert {r["response"]["body"]["created"] for r in read_rows(jobs.answers)} == {3}
    with pytest.raises(JobError, match="model or its sampling changed"):
        jobs.run(seed=7, encoder=change)


def test_another_input_is_not_taken_for_this_one(jobs: Jobs) -> None:
    jobs.write(*rows(4))
    jobs.run()
    before = jobs.contents()
    jobs.write(chat("a"), chat("b"))
    with pytest.raises(JobError, match=r"none of the 4 rows answered so far.*-o"):
        jobs.run()
    assert jobs.contents() == before
    assert jobs.run(overwrite=True).exit_code == 0
    assert ids(jobs.answers) == ["a", "b"]


def test_overwrite_forgets_everything(jobs: Jobs) -> None:
    jobs.write(*rows(4), "{bad")
    jobs.run(now_s=1)
    jobs.write(*rows(4))
    assert jobs.run(now_s=2, overwrite=True).exit_code == 0
    assert {r["response"]["body"]["created"] for r in read_rows(jobs.answers)} == {2}
    assert not jobs.errors.exists()


def test_overwrite_cut_off_at_its_start_is_resumed(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs.write(*rows(4))
    jobs.run(now_s=1)

    def cut_off(self: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("seesaw.batch.job._Job._note_version", cut_off)
        with pytest.raises(KeyboardInterrupt):
            jobs.run(now_s=2, overwrite=True)
    assert jobs.run(now_s=3).exit_code == 0
    assert {r["response"]["body"]["created"] for r in read_rows(jobs.answers)} == {3}


def test_a_journal_cut_off_before_its_first_commit(jobs: Jobs) -> None:
    """SQLite has made the file, but there is nothing in it yet."""
    with sqlite3.connect(jobs.journal) as db:
        db.execute("PRAGMA journal_mode=WAL")
    db.close()
    assert jobs.journal.stat().st_size
    jobs.write(*rows(2))
    jobs.answers.write_text("precious")
    for _ in range(2):
        with pytest.raises(ConfigError, match="--overwrite"):
            jobs.run()
    jobs.answers.unlink()
    assert jobs.run().exit_code == 0


def test_answers_of_someone_else_are_not_replaced(jobs: Jobs) -> None:
    jobs.write(*rows(2))
    jobs.answers.write_text("precious")
    with pytest.raises(ConfigError, match=r"out\.jsonl exists.*--overwrite"):
        jobs.run()
    assert jobs.answers.read_text() == "precious"
    assert not jobs.journal.exists()
    assert jobs.run(overwrite=True).exit_code == 0


def test_failed_rows_stay_failed_until_asked(jobs: Jobs) -> None:
    jobs.write(chat("a"), chat("b", "CRASH1"), chat("c", "REFUSE"), chat("d", tools=[{}]))
    jobs.run()
    assert ids(jobs.errors) == ["c", "d"]
    assert jobs.run().status == "nothing to do"
    assert jobs.run(retry_failed=True).exit_code == 3
    assert jobs.summary["this_run"]["retried_rows"] == 2
    assert ids(jobs.errors) == ["c", "d"]
    assert ids(jobs.answers) == ["a", "b"]


def test_limit_runs_the_first_rows_and_the_next_run_goes_on(jobs: Jobs) -> None:
    jobs.write(*rows(10))
    assert (r := jobs.run(limit=3)).status == "partial"
    assert r.exit_code == 0
    assert ids(jobs.answers) == ["r0", "r1", "r2"]
    assert jobs.summary["rows"]["pending"] == 7
    jobs.run(limit=3)
    assert ids(jobs.answers) == [f"r{i}" for i in range(6)]
    assert jobs.run(limit=100).status == "complete"
    assert ids(jobs.answers) == [f"r{i}" for i in range(10)]


def test_answers_do_not_depend_on_order_restart_or_company(jobs: Jobs, tmp_path: Path) -> None:
    jobs.write(*rows(12))
    jobs.run()
    whole = {r["custom_id"]: r for r in read_rows(jobs.answers)}
    other = Jobs(tmp_path / "other")
    other.folder.mkdir()
    other.write(*reversed(rows(12)))
    for _ in range(4):
        other.run(limit=3, engine={"max_num_seqs": 1})
    assert {r["custom_id"]: r for r in read_rows(other.answers)} == whole
    other.run(overwrite=True, seed=1)
    assert {r["custom_id"]: r for r in read_rows(other.answers)} != whole


def test_fail_fast_stops_before_the_engine_for_a_row_that_is_wrong(jobs: Jobs) -> None:
    jobs.write(*rows(3), chat("x", tools=[{}]), "{bad")
    with pytest.raises(JobError, match=r"line 4 \(custom_id 'x'\) failed: tools.*fail_fast"):
        jobs.run(fail_fast=True)
    assert not jobs.engines
    assert jobs.summary["status"] == "failed"
    assert jobs.summary["exit_code"] == 1
    assert len(read_rows(jobs.errors)) == 2
    assert jobs.run().exit_code == 3


def test_fail_fast_stops_at_a_row_that_fails_in_the_run(jobs: Jobs) -> None:
    jobs.write(*rows(30), chat("x", "y" * 600), *(chat(f"s{i}") for i in range(30)))
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
    jobs.write(*rows(2))
    assert jobs.run(dry_run=True).exit_code == 0


def test_dry_run_shows_twenty_bad_rows_and_counts_all(jobs: Jobs) -> None:
    jobs.write(*["{bad"] * 50)
    assert jobs.run(dry_run=True).summary["rows"]["failed"] == 50
    assert len([m for m in jobs.said.messages if m.startswith("line ")]) == 20


def test_dry_run_works_beside_a_finished_job(jobs: Jobs) -> None:
    jobs.write(*rows(2))
    jobs.run()
    before = jobs.contents()
    assert jobs.run(dry_run=True).exit_code == 0
    assert jobs.contents() == before


def test_truncation_is_never_silent(jobs: Jobs) -> None:
    jobs.write(*rows(3), chat("short", max_tokens=1))
    jobs.run()
    assert jobs.summary["finish_reasons"] == {"length": 1, "stop": 3}
    assert jobs.summary["truncated_rows"] == 1
    assert "1 answers were cut off at their token limit" in jobs.said.text


def test_other_models_and_ignored_fields_are_counted(jobs: Jobs) -> None:
    jobs.write(
        chat("a", model="gpt-4o", user="me", store=True), chat("b", user="me", metadata={"k": "v"})
    )
    assert jobs.run().exit_code == 0
    assert jobs.summary["rows"]["named_another_model"] == 1
    assert jobs.summary["ignored_fields"] == {"user": 2, "metadata": 1, "store": 1}
    assert "1 rows named another model" in jobs.said.text
    assert "2 rows had a field 'user', which was ignored" in jobs.said.text


def test_served_model_name_is_checked_and_answered_with(jobs: Jobs) -> None:
    jobs.write(chat("a", model="mine"), chat("b", model="other"), completion("c"))
    assert jobs.run(served_model_name="mine").exit_code == 3
    assert ids(jobs.answers) == ["a", "c"]
    assert {r["response"]["body"]["model"] for r in read_rows(jobs.answers)} == {"mine"}
    (error,) = read_rows(jobs.errors)
    assert error["response"]["body"]["error"]["code"] == "model_not_found"


def test_the_input_may_not_change_while_the_job_runs(jobs: Jobs) -> None:
    jobs.write(*rows(100))

    def swap(point: str) -> None:
        if point == "load":
            write_rows(jobs.input, [chat(f"r{i}", "edited") for i in range(100)])

    with pytest.raises(JobError, match="changed while the job runs"):
        jobs.run(engine={"hook": swap})


def test_a_journal_elsewhere(jobs: Jobs, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    jobs.write(*rows(2))
    jobs.run(journal=str(tmp_path / "state" / "j.db"))
    assert not jobs.journal.exists()
    assert jobs.run(journal=str(tmp_path / "state" / "j.db")).status == "nothing to do"
    with pytest.raises(ConfigError, match="knows nothing of it"):
        jobs.run()


def test_progress_is_told(jobs: Jobs) -> None:
    jobs.write(*rows(60), "{bad")
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
    jobs.write(*rows(1))
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
    jobs.write(*rows(40))

    def fill(point: str) -> None:
        if point == "step" and not jobs.answers.is_dir():
            jobs.answers.unlink()
            jobs.answers.mkdir()

    with pytest.raises(JobError, match=r"out\.jsonl.*The journal is safe"):
        jobs.run(engine={"hook": fill, "step_s": 0.01})
    jobs.answers.rmdir()
    jobs.run()
    assert ids(jobs.answers) == [f"r{i}" for i in range(40)]


def test_the_version_of_seesaw_is_told(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.write(*rows(4))
    jobs.run(limit=2)
    monkeypatch.setattr("seesaw.batch.job.__version__", "99")
    assert jobs.run().exit_code == 0
    assert "goes on with 99" in jobs.said.text


def test_options_make_flags() -> None:
    flags = {field.name: help for field, _, help in JobOptions.options()}
    assert flags.keys() >= {"input", "output", "journal", "limit", "dry_run", "max_restarts"}
    assert not {"seed", "resume_command"} & flags.keys()
    assert all(flags.values())


def test_fake_answers_differ_by_prompt() -> None:
    """Else the tests above could not see rows mixed up."""
    engine = FakeEngine()
    assert engine.encode_prompt("a") != engine.encode_prompt("b")
