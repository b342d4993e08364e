"""What all tests of `seesaw plan` ask, unless they say otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plan.models import config_of, write_model


@pytest.fixture(autouse=True)
def nothing_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEESAW_CACHE_ROOT", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "llama 15b", config_of("15B"))


@pytest.fixture
def words(model: Path) -> list[str]:
    """For the machine at hand. One size of chunk, since each that is tried takes time."""
    return ["plan", "--model", str(model), "--max-num-batched-tokens", "1024"]


@pytest.fixture
def asked(words: list[str]) -> list[str]:
    return [*words, "--machine", "4xl4", "--num-requests", "200"]
