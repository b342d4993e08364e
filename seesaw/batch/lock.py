"""One live run per journal: a lock that dies with its process and tells who holds it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from pathlib import Path
from typing import Self

from seesaw.errors import JobError


class JobLock:
    """An exclusive `flock` on `<journal>.lock`, whose text names the owner. A context manager.

    Not on the journal itself: where flock is emulated by record locks (NFS), it would meet SQLite's
    own.
    """

    def __init__(self, journal: Path):
        self.path = journal.with_name(journal.name + ".lock")
        self._journal = journal
        self._fd = -1

    def __enter__(self) -> Self:
        """Raises JobError if another process holds the lock or the file system has none."""
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                owner = os.pread(fd, 200, 0).decode("utf-8", "replace").strip()
                os.close(fd)
                if isinstance(error, BlockingIOError):
                    raise JobError(
                        f"journal {self._journal} is in use by {owner or 'another process'}. Wait "
                        "for that run, stop it, or give this one another -o or --journal."
                    ) from None
                raise JobError(
                    f"journal {self._journal}: its folder allows no file locks ({error.strerror}). "
                    "Give --journal a path on a local disk."
                ) from error
            # The former owner may have removed the file between our open and our lock.
            if _same_file(fd, self.path):
                break
            os.close(fd)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._fd = fd
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        os.close(self._fd)


def _same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
