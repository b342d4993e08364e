"""What the benches of single ops share: the limits' probe, and a table of shares at the end.

pytest bench/bench_linear.py --benchmark-only
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.op_bench import Row, bench_op, table
from seesaw.measure.limits import LimitsProbe
from seesaw.ops.registry import Case

ROWS = pytest.StashKey[list[Row]]()


@pytest.fixture(scope="session")
def probe() -> LimitsProbe:
    return LimitsProbe()


@pytest.fixture
def run_op(benchmark: Any, probe: LimitsProbe, pytestconfig: pytest.Config) -> Callable[..., None]:
    """run_op(name, case, dtype=torch.bfloat16, cold=False)"""

    def run(name: str, case: Case, dtype: torch.dtype = torch.bfloat16, cold: bool = False) -> None:
        row = bench_op(benchmark, probe, name, case, dtype, cold=cold)
        if row[1]:
            pytestconfig.stash.setdefault(ROWS, []).append(row)

    return run


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if rows := config.stash.get(ROWS, []):
        terminalreporter.section("share of this machine's limits")
        for line in table(rows):
            terminalreporter.write_line(line)
