"""What a bug report says, and what it leaves out."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from seesaw import envs
from seesaw.api import environment
from seesaw.ops import native


def test_only_our_variables_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in envs.DESCRIPTIONS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SEESAW_LOGGING_LEVEL", "INFO")
    monkeypatch.setenv("SEESAW_SECRET", "x")
    monkeypatch.setenv("HF_TOKEN", "x")
    assert environment.environment()["variables"] == {"SEESAW_LOGGING_LEVEL": "INFO"}


def test_description_has_a_line_per_fact_and_no_raw_structures() -> None:
    facts = environment.environment()
    text = environment.describe(facts)
    assert len(text.splitlines()) == len(facts)
    assert not set("{}[]") & set(text)


@pytest.fixture
def fresh_choice() -> Iterator[None]:
    """Whether there are kernels is found once; here, and for those after, anew."""
    native.native.cache_clear()
    yield
    native.native.cache_clear()


@pytest.mark.usefixtures("fresh_choice")
def test_plain_torch_says_why_what_it_costs_and_what_mends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("seesaw._cpu", raising=False)
    monkeypatch.setitem(sys.modules, "seesaw._cpu", None)
    facts = environment.environment()
    assert facts["native_build"] is None
    said = facts["cpu_backend"]
    assert said.startswith("plain torch: the C++ kernels are not built here")
    assert native.SLOWDOWN in said
    assert "sudo apt-get install -y g++ python3-dev" in said
    assert "make setup" in said


@pytest.mark.usefixtures("fresh_choice")
def test_plain_torch_that_was_asked_for_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEESAW_KERNELS", "torch")
    assert "SEESAW_KERNELS=torch" in environment.environment()["cpu_backend"]


def test_kernels_say_what_they_run_with(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = pytest.importorskip("seesaw._cpu")
    facts = environment.environment()
    assert facts["cpu_backend"] == "kernels"
    assert facts["native_build"]["isa"] == cpu.isa()
    assert facts["native_build"]["threads"] == cpu.num_threads()
    assert set(cpu.build_info()) < set(facts["native_build"])
