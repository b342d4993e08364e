"""What the benches of single ops share: the device's clock and limits, and a table of shares at the
end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from bench.replay import REPLAY
from seesaw.api.bench_kernels import Bencher, Findings, Job, Row, row
from seesaw.api.bench_kernels_report import table
from seesaw.ops import OPS

ROWS = pytest.StashKey[list[Row]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    with contextlib.suppress(ValueError):  # beside tests/, which has it
        parser.addoption("--device", default="cpu", help="where ops run: cpu or cuda")


@pytest.fixture(scope="session")
def bencher(request: pytest.FixtureRequest) -> Iterator[Bencher]:
    name = str(request.config.getoption("--device"))
    with torch.inference_mode():
        yield Bencher(torch.device(name, 0) if name == "cuda" else torch.device(name))


@pytest.fixture
def run_op(
    benchmark: Any, bencher: Bencher, pytestconfig: pytest.Config
) -> Callable[[str, str, str], None]:
    """run_op(op, case, provider): times are taken by the device's clock and replayed."""

    def run(name: str, case: str, provider: str) -> None:
        job = Job(OPS[name], case, OPS[name].bench[case])
        if bencher.device.type not in job.bench.devices:
            pytest.skip(f"not timed on {bencher.device.type}")
        findings = Findings()
        timings = bencher.time(job, [provider], findings)
        for *_, why in findings.skipped:
            pytest.skip(why)
        for *_, why in findings.failed:
            pytest.fail(why)
        limits = bencher.limits()
        found = row(job, provider, timings[provider], limits)
        benchmark.group = f"{name}: {case}"
        benchmark.extra_info.update(found.figures())
        benchmark.extra_info["limits"] = {} if limits is None else dict(limits.figures())
        pytestconfig.stash.setdefault(ROWS, []).append(found)
        seconds = timings[provider].seconds
        REPLAY.load(seconds)
        benchmark.pedantic(REPLAY.advance, rounds=len(seconds))

    return run


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if rows := config.stash.get(ROWS, []):
        terminalreporter.section("share of this machine's limits")
        for line in table(rows):
            terminalreporter.write_line(line)
