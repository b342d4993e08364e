"""After each of these tests nothing may be left: no process, file, folder or shared memory."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

GONE_S = 10.0


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def own_files() -> list[str]:
    """Files of this process that seesaw makes for ranks: images, tiers, folders."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        if "seesaw" in target and ("memfd" in target or "/seesaw-" in target):
            found.append(target)
    return found


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files of this test's engines and processes; its name is short, as it
    is part of the paths of sockets."""
    folder = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    before, files = children(), own_files()
    yield folder
    try:
        deadline_s = time.monotonic() + GONE_S
        while children() - before and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert not children() - before, "a process is still there"
        assert own_files() == files
        assert not list(Path("/dev/shm").glob("*seesaw*"))
        assert not list(folder.glob("seesaw-*"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
