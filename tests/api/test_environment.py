"""Facts about the machine, container limits included."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from seesaw.api import environment


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000\n", None), ("150000 100000\n", 1.5), ("50000 100000", 0.5), ("nonsense", None)],
)
def test_cpu_quota_of_a_control_group(tmp_path: Path, text: str, cores: float | None) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert environment._cpu_quota(tmp_path) == cores


def test_the_smallest_quota_above_the_process_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "cpu.max").write_text("25000 100000")
    (inner / "cpu.max").write_text("max 100000")
    monkeypatch.setattr(environment, "_own_cgroups", lambda: [inner, tmp_path])
    assert environment.usable_cores() == 0.25
    monkeypatch.setattr(environment, "_own_cgroups", lambda: [tmp_path / "absent"])
    assert environment.usable_cores() == len(os.sched_getaffinity(0))


def test_only_our_variables_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEESAW_LOGGING_LEVEL", "INFO")
    monkeypatch.setenv("SEESAW_SECRET", "x")
    monkeypatch.setenv("HF_TOKEN", "x")
    assert environment.environment()["variables"] == {"SEESAW_LOGGING_LEVEL": "INFO"}


def test_description_has_a_line_per_fact_and_no_raw_structures() -> None:
    facts = environment.environment()
    text = environment.describe(facts)
    assert len(text.splitlines()) == len(facts)
    assert not set("{}[]") & set(text)
