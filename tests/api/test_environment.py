"""What a bug report says, and what it leaves out."""

from __future__ import annotations

import pytest

from seesaw.api import environment


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
