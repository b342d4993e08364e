"""The journal file: what it refuses, where it lies, what survives."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from seesaw.batch.journal import (
    ANSWERED,
    PENDING,
    Finished,
    Journal,
    is_network_path,
    set_journal_mode,
)
from seesaw.batch.lock import JobLock
from seesaw.errors import ConfigError, JobError
from tests.batch.helpers import Jobs, chat


def test_a_file_that_is_no_database_is_refused_and_kept(jobs: Jobs) -> None:
    jobs.write(chat("a"))
    for data in (b"hello", os.urandom(5000)):
        jobs.journal.write_bytes(data)
        for overwrite in (False, True):
            with pytest.raises(ConfigError, match=r"not a database.*Nothing was deleted"):
                jobs.run(overwrite=overwrite)
            assert jobs.journal.read_bytes() == data
    assert not jobs.answers.exists()


def test_a_database_of_another_program_is_refused_and_kept(jobs: Jobs) -> None:
    jobs.write(chat("a"))
    with sqlite3.connect(jobs.journal) as db:
        db.execute("CREATE TABLE precious(x)")
    db.close()
    data = jobs.journal.read_bytes()
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="of another program"):
            jobs.run(overwrite=overwrite)
        assert jobs.journal.read_bytes() == data


def test_a_journal_of_another_format_is_refused(jobs: Jobs) -> None:
    jobs.write(chat("a"))
    jobs.run()
    with sqlite3.connect(jobs.journal) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(ConfigError, match=r"has format 99.*--overwrite"):
        jobs.run()
    assert jobs.run(overwrite=True).exit_code == 0


def test_a_damaged_journal_is_refused_and_kept(jobs: Jobs) -> None:
    jobs.write(*(chat(f"r{i}") for i in range(200)))
    jobs.run()
    data = bytearray(jobs.journal.read_bytes())
    data[4096 : len(data) // 2] = b"\xff" * (len(data) // 2 - 4096)
    jobs.journal.write_bytes(data)
    jobs.answers.unlink()
    with pytest.raises(ConfigError, match=r"malformed.*Nothing was deleted"):
        jobs.run()
    assert jobs.journal.read_bytes() == data


def test_a_transaction_that_fails_leaves_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.sqlite")
    row = journal.insert("a", b"x", 1, 1, PENDING, 0)
    with pytest.raises(sqlite3.IntegrityError):
        journal.finish([Finished(row, ANSWERED, b"1\n"), Finished(row, ANSWERED, b"2\n")])
    assert journal.counts()[PENDING] == 1
    assert not list(journal.results(ANSWERED))
    journal.close()


def test_pages_end_to_end(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.sqlite")
    with journal.transaction():
        made = [journal.insert(f"r{i}", b"x", 2000 - i, 1, PENDING, 0) for i in range(1500)]
    assert [row.line for row in journal.pending(10**9, 0, 2)] == list(range(501, 2001))
    assert [row.line for row in journal.pending(502, 0, 2)] == [501, 502]
    journal.add_crash(made[:2])
    journal.add_crash(made[:1])
    assert [row.id for row in journal.pending(10**9, 2, 9)] == made[:1]
    assert len(list(journal.pending(10**9, 0, 2))) == 1499
    assert journal.nth_pending_line(1500) == 2000
    assert journal.nth_pending_line(1501) is None
    journal.finish(Finished(i, ANSWERED, b"%d\n" % i) for i in made)
    assert [content for *_, content in journal.results(ANSWERED)] == [
        b"%d\n" % i for i in reversed(made)
    ]
    journal.close()


def test_write_ahead_log_here_rollback_on_network_file_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "local.sqlite")
    assert journal.mode == "wal"
    journal.close()
    monkeypatch.setattr("seesaw.batch.journal.is_network_path", lambda path: True)
    for name in ("local.sqlite", "new.sqlite"):  # one that moved there, and a new one
        journal = Journal(tmp_path / name)
        assert journal.mode == "delete"
        journal.put("key", "value")
        journal.close()
        assert not (tmp_path / f"{name}-wal").exists()


def test_a_job_in_rollback_mode(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seesaw.batch.journal.is_network_path", lambda path: True)
    jobs.write(*(chat(f"r{i}") for i in range(20)))
    assert jobs.run().exit_code == 0
    assert jobs.run().status == "nothing to do"


def test_a_disk_where_no_log_can_be_kept_is_named() -> None:
    db = sqlite3.connect(":memory:")  # its mode is "memory" and cannot change
    with pytest.raises(ConfigError, match="--journal a path on a local disk"):
        set_journal_mode(db, Path("x"))
    db.close()


def test_network_mounts_are_known(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda / ext4 rw 0 0\n"
        "server:/home /mnt/my\\040home nfs4 rw 0 0\n"
        "/dev/sdb /mnt/my\\040home/local xfs rw 0 0\n"
        "s3 /bucket fuse.s3fs rw 0 0\n"
        "/dev/sdc /bucketlist ext4 rw 0 0\n"
        "//host/share /smb cifs rw 0 0\n"
    )
    network = ["/mnt/my home/j", "/bucket/a/b", "/smb", "/mnt/my home/locality"]
    local = ["/home/j", "/mnt/my home/local/j", "/bucketlist/j", "/"]
    assert all(is_network_path(Path(p), mounts) for p in network)
    assert not any(is_network_path(Path(p), mounts) for p in local)
    assert not is_network_path(tmp_path, tmp_path / "no mount table")


def test_the_lock_outlives_neither_its_owner_nor_its_file(tmp_path: Path) -> None:
    journal = tmp_path / "j.sqlite"
    with JobLock(journal):
        with pytest.raises(JobError, match=f"in use by process {os.getpid()} on"), JobLock(journal):
            pass
        assert (tmp_path / "j.sqlite.lock").exists()
    assert not (tmp_path / "j.sqlite.lock").exists()
    (tmp_path / "j.sqlite.lock").write_text("process 1 on a host that lost power\n")
    with JobLock(journal):
        pass
