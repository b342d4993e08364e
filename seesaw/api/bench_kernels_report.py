"""What `seesaw bench kernels` found, as tables for people and as plots: a bar for each provider and
shape of an op, in shares of the limit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from seesaw.api.bench_kernels import Findings, Goal, Row

MOST_WIDTH = 44


def table(rows: Sequence[Row]) -> Iterator[str]:
    width = min(MOST_WIDTH, max([len(row.case) for row in rows], default=0))
    head = f"{'case':<{width}} {'provider':<10} {'p50 us':>9} {'p20':>9} {'p80':>9}"
    yield f"{head} {'GB/s':>8} {'TFLOP/s':>8} {'limit':>6}  of"
    for op, own in itertools.groupby(rows, key=lambda row: row.op):
        yield f"-- {op}"
        for row in own:
            yield (
                f"{row.case[:width]:<{width}} {row.provider:<10} {row.p50_s * 1e6:9.1f} "
                f"{row.p20_s * 1e6:9.1f} {row.p80_s * 1e6:9.1f} {row.gb_per_s:8.1f} "
                f"{row.tflop_per_s:8.2f} {share(row.of_limit):>6}  {bound(row)}"
            )


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def bound(row: Row) -> str:
    """What limits a call at this shape."""
    if row.of_memory is None or row.of_matmul is None:
        return "not measured"
    return row.link or ("memory" if row.of_memory >= row.of_matmul else "arithmetic")


def goal_table(goals: Sequence[Goal]) -> Iterator[str]:
    if not goals:
        return
    width = max(len(f"{goal.op}, {goal.case}") for goal in goals)
    met = sum(goal.met for goal in goals)
    yield f"goals: {met} of {len(goals)} met"
    for goal in goals:
        where = f"{goal.op}, {goal.case}"
        mark = "met   " if goal.met else "MISSED"
        yield (
            f"  {mark} {where:<{width}}  {goal.value:5.2f} {goal.what}, at least {goal.least:.2f}"
        )


def notes(findings: Findings) -> Iterator[str]:
    """What was left out, each reason once, and what failed."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for op, _, provider, why in findings.skipped:
        reasons.setdefault((provider, why), []).append(op)
    for (provider, why), ops in reasons.items():
        yield f"left out: {provider} of {', '.join(dict.fromkeys(ops))}: {why}"
    for op, case, provider, why in findings.failed:
        yield f"FAILED: {op}, {case}, {provider}: {why}"


def plot(rows: Sequence[Row], folder: Path) -> list[Path]:
    """`<op>.png` for each op whose limits were measured. Raises ConfigError."""
    from seesaw.api import plots

    made = []
    for op, own in itertools.groupby(rows, key=lambda row: row.op):
        groups: dict[str, dict[str, float]] = {}
        for row in own:
            if row.of_limit is not None:
                groups.setdefault(row.case, {})[row.provider] = 100 * row.of_limit
        if groups:
            path = folder / f"{op}.png"
            plots.bars(groups, path, op, "% of the device's limit", baseline=100, simulated=False)
            made.append(path)
    return made
