"""The journal of a job: one SQLite file that is the only truth about which rows are done.

The answers and errors files are copies of what it holds. One process uses it at a time (`lock.py`);
its methods may be called from two threads. Knows nothing of requests or engines.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from seesaw.errors import ConfigError, JobError, SeesawError

PENDING, ANSWERED, FAILED = 0, 1, 2
APPLICATION_ID = 0x53534A4C  # "SSJL"
SCHEMA_VERSION = 1
_PAGE = 512
_RESULTS_PAGE = 64  # of results, which can be long
# File systems whose locks or memory maps SQLite's write-ahead log cannot rely on.
_NETWORK_FILE_SYSTEMS = (
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "glusterfs",
    "beegfs", "fuse.",
)  # fmt: skip

_SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE rows(
  id INTEGER PRIMARY KEY,
  custom_id TEXT UNIQUE,             -- NULL: a line without an identity of its own
  digest BLOB NOT NULL,
  line INTEGER NOT NULL,
  scan INTEGER NOT NULL,             -- the last scan that met the row
  state INTEGER NOT NULL,            -- 0 pending, 1 answered, 2 failed
  crashes INTEGER NOT NULL DEFAULT 0,
  flags INTEGER NOT NULL DEFAULT 0,  -- what the summary counts: scan.py
  prompt_tokens INTEGER NOT NULL DEFAULT 0,
  cached_tokens INTEGER NOT NULL DEFAULT 0,
  completion_tokens INTEGER NOT NULL DEFAULT 0,
  finish_reason TEXT
);
CREATE INDEX rows_in_order ON rows(state, line);
-- of an answered row its line of the answers file, of a failed one what is wrong with it (JSON)
CREATE TABLE results(row INTEGER PRIMARY KEY, content BLOB NOT NULL);
"""


class PendingRow(NamedTuple):
    id: int
    line: int
    custom_id: str
    digest: bytes
    crashes: int


class StoredRow(NamedTuple):
    id: int
    digest: bytes
    line: int
    scan: int
    state: int


class Finished(NamedTuple):
    """A row's result: `content` is its answers line, or JSON of its failure."""

    id: int
    state: int
    content: bytes
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str | None = None


class Journal:
    """`Journal(None)` is a temporary one that leaves nothing behind (dry runs).

    sqlite3 errors are left to the caller, who knows what to say (`journal_error`).
    """

    def __init__(
        self,
        path: Path | None,
        *,
        overwrite: bool = False,
        on_new: Callable[[], None] = lambda: None,
    ):
        """Open or make. `on_new` is called before a new journal is made and may raise.

        Raises ConfigError, and touches nothing, if `path` is not a journal of this version.
        """
        self.path = path
        self._lock = threading.RLock()
        self._db = sqlite3.connect(
            "" if path is None else path, isolation_level=None, check_same_thread=False
        )
        try:
            self._open(overwrite, on_new)
        except BaseException:
            self._db.close()
            raise

    def _open(self, overwrite: bool, on_new: Callable[[], None]) -> None:
        db = self._db
        db.execute("PRAGMA locking_mode=EXCLUSIVE")  # must precede WAL: no shared memory then
        (application_id,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (num_tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if num_tables and application_id != APPLICATION_ID:
            raise ConfigError(
                f"journal {self.path}: is a database of another program. Nothing was changed. "
                "Give another -o or --journal."
            )
        if num_tables and version != SCHEMA_VERSION and not overwrite:
            raise ConfigError(
                f"journal {self.path}: has format {version}, this seesaw writes {SCHEMA_VERSION}. "
                "Finish the job with the seesaw that began it, or start anew with --overwrite."
            )
        if not num_tables:
            on_new()
        if self.path is not None:
            self.mode = set_journal_mode(db, self.path)
            db.execute("PRAGMA synchronous=FULL")
        if not num_tables or overwrite:
            with self.transaction():
                for table in ("meta", "rows", "results"):
                    db.execute(f"DROP TABLE IF EXISTS {table}")
                for statement in _SCHEMA.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id={APPLICATION_ID}")
                db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
                self.put("created", str(time.time()))

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, also against SIGKILL and loss of power."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def get(self, key: str) -> str | None:
        row = self._one("SELECT value FROM meta WHERE key=?", key)
        return None if row is None else row[0]

    def put(self, key: str, value: str) -> None:
        with self._lock:
            self._db.execute("INSERT OR REPLACE INTO meta VALUES(?, ?)", (key, value))

    # Used by the scan, inside one transaction.

    def find(self, custom_id: str) -> StoredRow | None:
        row = self._one(
            "SELECT id, digest, line, scan, state FROM rows WHERE custom_id=?", custom_id
        )
        return None if row is None else StoredRow(*row)

    def insert(
        self, custom_id: str | None, digest: bytes, line: int, scan: int, state: int, flags: int
    ) -> int:
        cursor = self._db.execute(
            "INSERT INTO rows(custom_id, digest, line, scan, state, flags) VALUES(?,?,?,?,?,?)",
            (custom_id, digest, line, scan, state, flags),
        )
        assert cursor.lastrowid is not None, "an INSERT has a row id"
        return cursor.lastrowid

    def seen(self, row_id: int, line: int, scan: int) -> None:
        self._db.execute("UPDATE rows SET line=?, scan=? WHERE id=?", (line, scan, row_id))

    def reset(self, row_id: int, digest: bytes, flags: int) -> None:
        """Back to pending; an earlier result is forgotten."""
        self._db.execute(
            "UPDATE rows SET digest=?, flags=?, state=?, crashes=0, prompt_tokens=0, "
            "cached_tokens=0, completion_tokens=0, finish_reason=NULL WHERE id=?",
            (digest, flags, PENDING, row_id),
        )
        self._db.execute("DELETE FROM results WHERE row=?", (row_id,))

    def reset_answered(self) -> None:
        self._db.execute(
            "DELETE FROM results WHERE row IN (SELECT id FROM rows WHERE state=?)", (ANSWERED,)
        )
        self._db.execute(
            "UPDATE rows SET state=?, crashes=0, prompt_tokens=0, cached_tokens=0, "
            "completion_tokens=0, finish_reason=NULL WHERE state=?",
            (PENDING, ANSWERED),
        )

    def drop_unseen(self, scan: int) -> tuple[int, int]:
        """Forget rows that scan `scan` did not meet -> (how many with an identity, how many of
        those were answered).
        """
        named, answered = self._only(
            "SELECT count(custom_id), total(state=?) FROM rows WHERE scan<?", ANSWERED, scan
        )
        self._db.execute(
            "DELETE FROM results WHERE row IN (SELECT id FROM rows WHERE scan<?)", (scan,)
        )
        self._db.execute("DELETE FROM rows WHERE scan<?", (scan,))
        return named, int(answered)

    def add_result(self, result: Finished) -> None:
        """Of a row that has none yet: a result is never replaced, only reset."""
        row_id, state, content, *numbers = result
        self._db.execute("INSERT INTO results VALUES(?, ?)", (row_id, content))
        self._db.execute(
            "UPDATE rows SET state=?, prompt_tokens=?, cached_tokens=?, completion_tokens=?, "
            "finish_reason=? WHERE id=?",
            (state, *numbers, row_id),
        )

    # Used while the job runs.

    def counts(self) -> dict[int, int]:
        """State -> number of rows."""
        with self._lock:
            found = self._db.execute("SELECT state, count(*) FROM rows GROUP BY state").fetchall()
        return {PENDING: 0, ANSWERED: 0, FAILED: 0, **dict(found)}

    def nth_pending_line(self, n: int) -> int | None:
        """Line of the n-th pending row (from 1), None if there are fewer."""
        row = self._one(
            "SELECT line FROM rows WHERE state=? ORDER BY line LIMIT 1 OFFSET ?", PENDING, n - 1
        )
        return None if row is None else row[0]

    def pending(self, last_line: int, crashes_from: int, crashes_to: int) -> Iterator[PendingRow]:
        """Pending rows up to `last_line` with crashes_from <= crashes < crashes_to, by line. Rows
        that change while this runs may be met in either state.
        """
        line = 0
        while True:
            with self._lock:
                page = self._db.execute(
                    "SELECT id, line, custom_id, digest, crashes FROM rows WHERE state=? "
                    "AND line>? AND line<=? AND crashes>=? AND crashes<? ORDER BY line LIMIT ?",
                    (PENDING, line, last_line, crashes_from, crashes_to, _PAGE),
                ).fetchall()
            if not page:
                return
            yield from map(PendingRow._make, page)
            line = page[-1][1]

    def has_pending(self, last_line: int, crashes_from: int, crashes_to: int) -> bool:
        return next(self.pending(last_line, crashes_from, crashes_to), None) is not None

    def finish(self, finished: Iterable[Finished]) -> None:
        """Record results in one transaction."""
        with self.transaction():
            for result in finished:
                self.add_result(result)

    def add_crash(self, row_ids: Iterable[int]) -> None:
        with self.transaction():
            self._db.executemany(
                "UPDATE rows SET crashes=crashes+1 WHERE id=?", ((i,) for i in row_ids)
            )

    def results(self, state: int) -> Iterator[tuple[int, int, str | None, bytes]]:
        """(id, line, custom_id, content) of all rows in `state`, by line."""
        line = 0
        while True:
            with self._lock:
                page = self._db.execute(
                    "SELECT id, line, custom_id, content FROM rows JOIN results ON row=id "
                    "WHERE state=? AND line>? ORDER BY line LIMIT ?",
                    (state, line, _RESULTS_PAGE),
                ).fetchall()
            if not page:
                return
            yield from page
            line = page[-1][1]

    def totals(self) -> dict[str, int]:
        """Sums over answered rows, and over all rows how many have each flag (`flag_<bit>`)."""
        names = ("prompt_tokens", "cached_tokens", "completion_tokens")
        sums = self._only(
            f"SELECT {', '.join(f'coalesce(sum({n}), 0)' for n in names)} FROM rows WHERE state=?",
            ANSWERED,
        )
        flags = self._only(
            "SELECT " + ", ".join(f"coalesce(sum((flags >> {b}) & 1), 0)" for b in range(8))
            + " FROM rows"
        )  # fmt: skip
        return dict(zip(names, sums, strict=True)) | {f"flag_{b}": n for b, n in enumerate(flags)}

    def finish_reasons(self) -> dict[str, int]:
        with self._lock:
            return dict(
                self._db.execute(
                    "SELECT finish_reason, count(*) FROM rows WHERE state=? GROUP BY finish_reason "
                    "ORDER BY finish_reason",
                    (ANSWERED,),
                ).fetchall()
            )

    def _one(self, sql: str, *values: Any) -> tuple[Any, ...] | None:
        with self._lock:
            row: tuple[Any, ...] | None = self._db.execute(sql, values).fetchone()
        return row

    def _only(self, sql: str, *values: Any) -> tuple[Any, ...]:
        row = self._one(sql, *values)
        assert row is not None, "an aggregate has one row"
        return row


def set_journal_mode(db: sqlite3.Connection, path: Path) -> str:
    """Write-ahead log on local disks, rollback journal elsewhere -> the mode SQLite is in.

    SQLite says which mode it got, and keeps the old one where it cannot change. It cannot see a
    network file system, so the mount table is asked.
    """
    if not is_network_path(path):
        (mode,) = db.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode == "wal":
            return "wal"
    (mode,) = db.execute("PRAGMA journal_mode=DELETE").fetchone()
    if mode != "delete":
        raise ConfigError(
            f"journal {path}: SQLite cannot keep a rollback journal there (mode {mode!r}). "
            "Give --journal a path on a local disk."
        )
    return "delete"


def is_network_path(path: Path, mounts: Path = Path("/proc/self/mounts")) -> bool:
    """Whether `path` lies on a file system shared over a network, by the longest mount point above
    it; False where there is no mount table.
    """
    try:
        table = mounts.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return False
    target = os.path.realpath(path)
    best, kind = "", ""
    for entry in table.splitlines():
        _, point, fs_type, *_ = entry.split(" ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point)
        above = target == point or target.startswith(point.rstrip("/") + "/")
        if above and len(point) >= len(best):
            best, kind = point, fs_type
    return kind.startswith(_NETWORK_FILE_SYSTEMS)


def journal_error(path: Path, error: sqlite3.Error) -> SeesawError:
    """What to tell people when SQLite fails; the cause decides the advice, and whether the same
    command can go on (JobError) or never will (ConfigError)."""
    text = str(error)
    kind: type[SeesawError] = JobError
    if "full" in text:
        advice = "Free some space and resume; what is in the journal is safe."
    elif "not a database" in text or "malformed" in text:
        kind = ConfigError
        advice = "Nothing was deleted. Give another -o or --journal, or move the file away."
    elif "locked" in text:
        advice = "Another program has it open. Close that one."
    else:
        advice = "Check the disk and the permissions of its folder, then resume."
    return kind(f"journal {path}: {text}. {advice}")
