"""What a process may use of its machine: limits of its container count."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from seesaw.engine import host


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000\n", None), ("150000 100000\n", 1.5), ("50000 100000", 0.5), ("nonsense", None)],
)
def test_cpu_quota_of_a_control_group(tmp_path: Path, text: str, cores: float | None) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert host._cpu_quota(tmp_path) == cores


def test_the_smallest_quota_above_the_process_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "cpu.max").write_text("25000 100000")
    (inner / "cpu.max").write_text("max 100000")
    monkeypatch.setattr(host, "control_groups", lambda root, controller: [inner, tmp_path])
    assert host.usable_cores() == 0.25
    monkeypatch.setattr(host, "control_groups", lambda root, controller: [tmp_path / "absent"])
    assert host.usable_cores() == len(os.sched_getaffinity(0))


def test_a_container_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 100000\n")
    monkeypatch.setattr(host, "control_groups", lambda root, controller: [tmp_path])
    assert host.host_memory() == (400000, 1000000)
    (tmp_path / "memory.max").write_text("max\n")
    assert host.host_memory()[1] > 1000000
