"""Jobs that go on: what is kept, what runs again, and what is refused."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from seesaw.errors import ConfigError, JobError
from tests.batch.helpers import Jobs, chat, ids, questions, read_rows, write_rows


def test_a_finished_job_has_nothing_to_do(jobs: Jobs) -> None:
    jobs.write(*questions(5), "{bad")
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
    jobs.write(*questions(5), "{bad")
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
    jobs.write(*questions(6))
    jobs.run(now_s=1)
    before = {row["custom_id"]: row for row in read_rows(jobs.answers)}
    old = questions(6)
    jobs.write(chat("new"), old[5], old[0], old[2])
    assert jobs.run(now_s=2).exit_code == 0
    after = {row["custom_id"]: row for row in read_rows(jobs.answers)}
    assert list(after) == ["new", "r5", "r0", "r2"]
    assert all(after[i] == before[i] for i in ("r5", "r0", "r2"))
    assert jobs.summary["this_run"]["removed_rows"] == 3
    assert jobs.summary["this_run"]["new_rows"] == 1
    assert "3 rows are no longer in the input" in jobs.said.text


def test_spelling_of_the_json_is_not_a_change(jobs: Jobs) -> None:
    jobs.write(*questions(2))
    jobs.run()
    row = questions(2)[1]
    shuffled = {name: row[name] for name in reversed(row)}
    jobs.write(questions(2)[0], json.dumps(shuffled, indent=None, separators=(" ,", " : ")))
    assert jobs.run().status == "nothing to do"


def test_changed_rows_are_refused_with_their_count_then_redone(jobs: Jobs) -> None:
    jobs.write(*questions(5))
    jobs.run(now_s=1)
    before, summary = jobs.contents(), jobs.summary
    changed = questions(5)
    changed[1]["body"]["max_tokens"] = 2
    changed[3] = chat("r3", "another question")
    jobs.write(*changed, chat("new"))
    with pytest.raises(ConfigError, match=r"2 of 5 answered rows have changed.*--redo-changed"):
        jobs.run(now_s=2)
    assert (jobs.contents(), jobs.summary) == (before, summary)
    jobs.write(*questions(5))
    assert jobs.run(now_s=2).status == "nothing to do", "a refusal leaves no trace"
    jobs.write(*changed, chat("new"))
    assert jobs.run(now_s=3, redo_changed=True).exit_code == 0
    made = {r["custom_id"]: r["response"]["body"]["created"] for r in read_rows(jobs.answers)}
    assert made == {"r0": 1, "r1": 3, "r2": 1, "r3": 3, "r4": 1, "new": 3}


def test_a_corrected_row_runs_without_a_flag(jobs: Jobs) -> None:
    jobs.write(*questions(2), chat("x", tools=[{}]), "{bad")
    assert jobs.run(now_s=1).exit_code == 3
    jobs.write(*questions(2), chat("x"), chat("was bad"))
    assert jobs.run(now_s=2).exit_code == 0
    assert ids(jobs.answers) == ["r0", "r1", "x", "was bad"]
    assert not jobs.errors.exists()


def test_a_broken_line_that_goes_away_leaves_the_errors_file(jobs: Jobs) -> None:
    jobs.write(*questions(2), "{bad", "{worse")
    jobs.run()
    assert len(read_rows(jobs.errors)) == 2
    jobs.write(*questions(2), "{bad")
    assert jobs.run().exit_code == 3
    assert len(read_rows(jobs.errors)) == 1
    jobs.write(*questions(2))
    assert jobs.run().exit_code == 0
    assert not jobs.errors.exists()


@pytest.mark.parametrize(
    "change", [{"version": "2"}, {"temperature": 0.5}], ids=["model", "sampling"]
)
def test_a_changed_model_is_refused_then_redone(jobs: Jobs, change: dict[str, Any]) -> None:
    jobs.write(*questions(4), "{bad")
    jobs.run(now_s=1)
    with pytest.raises(ConfigError, match=r"its sampling changed since 4 rows.*--overwrite"):
        jobs.run(now_s=2, encoder=change)
    assert jobs.run(now_s=2).status == "nothing to do"
    jobs.run(now_s=3, encoder=change, redo_changed=True)
    assert {r["response"]["body"]["created"] for r in read_rows(jobs.answers)} == {3}
    with pytest.raises(ConfigError, match="model or its sampling changed"):
        jobs.run(seed=7, encoder=change)


def test_another_input_is_not_taken_for_this_one(jobs: Jobs) -> None:
    jobs.write(*questions(4))
    jobs.run()
    before = jobs.contents()
    jobs.write(chat("a"), chat("b"))
    with pytest.raises(ConfigError, match=r"none of the 4 rows answered so far.*-o"):
        jobs.run()
    assert jobs.contents() == before
    assert jobs.run(overwrite=True).exit_code == 0
    assert ids(jobs.answers) == ["a", "b"]


def test_overwrite_forgets_everything(jobs: Jobs) -> None:
    jobs.write(*questions(4), "{bad")
    jobs.run(now_s=1)
    jobs.write(*questions(4))
    assert jobs.run(now_s=2, overwrite=True).exit_code == 0
    assert {r["response"]["body"]["created"] for r in read_rows(jobs.answers)} == {2}
    assert not jobs.errors.exists()


def test_overwrite_cut_off_at_its_start_is_resumed(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs.write(*questions(4))
    jobs.run(now_s=1)

    def cut_off(self: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("seesaw.batch.job._Job._note_version", cut_off)
        with pytest.raises(KeyboardInterrupt):
            jobs.run(now_s=2, overwrite=True)
    assert jobs.run(now_s=3).exit_code == 0
    assert {r["response"]["body"]["created"] for r in read_rows(jobs.answers)} == {3}


@pytest.mark.parametrize("change", ["remove", "reorder", "break", "mend"])
def test_a_changed_input_cut_off_after_the_scan(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """The journal is right already, the files are not: the next run may not call it done."""
    before, after = [*questions(4), "{bad"], [*questions(4), "{bad"]
    if change == "remove":
        after = after[1:]
    elif change == "reorder":
        after = [after[1], after[0], *after[2:]]
    elif change == "break":
        after.append("{worse")
    else:
        after.pop()
    jobs.write(*before)
    jobs.run()
    jobs.write(*after)

    def cut_off(self: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("seesaw.batch.job._Job._run_and_write", cut_off)
        with pytest.raises(KeyboardInterrupt):
            jobs.run()
    jobs.run()
    assert ids(jobs.answers) == [row["custom_id"] for row in after if isinstance(row, dict)]
    assert jobs.errors.exists() == (change != "mend")
    assert jobs.run().status == "nothing to do"
    if change == "break":
        assert len(read_rows(jobs.errors)) == 2


def test_a_journal_cut_off_before_its_first_commit(jobs: Jobs) -> None:
    """SQLite has made the file, but there is nothing in it yet."""
    with sqlite3.connect(jobs.journal) as db:
        db.execute("PRAGMA journal_mode=WAL")
    db.close()
    assert jobs.journal.stat().st_size
    jobs.write(*questions(2))
    jobs.answers.write_text("precious")
    for _ in range(2):
        with pytest.raises(ConfigError, match="--overwrite"):
            jobs.run()
    jobs.answers.unlink()
    assert jobs.run().exit_code == 0


def test_answers_of_someone_else_are_not_replaced(jobs: Jobs) -> None:
    jobs.write(*questions(2))
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
    jobs.write(*questions(10))
    assert (r := jobs.run(limit=3)).status == "partial"
    assert r.exit_code == 0
    assert ids(jobs.answers) == ["r0", "r1", "r2"]
    assert jobs.summary["rows"]["pending"] == 7
    jobs.run(limit=3)
    assert ids(jobs.answers) == [f"r{i}" for i in range(6)]
    assert jobs.run(limit=100).status == "complete"
    assert ids(jobs.answers) == [f"r{i}" for i in range(10)]


def test_answers_do_not_depend_on_order_restart_or_company(jobs: Jobs, tmp_path: Path) -> None:
    jobs.write(*questions(12))
    jobs.run()
    whole = {r["custom_id"]: r for r in read_rows(jobs.answers)}
    other = Jobs(tmp_path / "other")
    other.folder.mkdir()
    other.write(*reversed(questions(12)))
    for _ in range(4):
        other.run(limit=3, engine={"max_num_seqs": 1})
    assert {r["custom_id"]: r for r in read_rows(other.answers)} == whole
    other.run(overwrite=True, seed=1)
    assert {r["custom_id"]: r for r in read_rows(other.answers)} != whole


def test_the_input_may_not_change_while_the_job_runs(jobs: Jobs) -> None:
    jobs.write(*questions(100))

    def swap(point: str) -> None:
        if point == "load":
            write_rows(jobs.input, [chat(f"r{i}", "edited") for i in range(100)])

    with pytest.raises(JobError, match="changed while the job runs"):
        jobs.run(engine={"hook": swap})


def test_the_version_of_seesaw_is_told(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.write(*questions(4))
    jobs.run(limit=2)
    monkeypatch.setattr("seesaw.batch.job.__version__", "99")
    assert jobs.run().exit_code == 0
    assert "goes on with 99" in jobs.said.text
