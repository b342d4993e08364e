"""One run of `seesaw bench kernels`: what is asked for is checked before anything is timed, then
every job, then plots and plain data."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from seesaw.api import bench_kernels_report as report
from seesaw.api.bench_kernels import PROVIDERS, Bencher, Findings, Goal, choose, goals, run
from seesaw.api.environment import environment
from seesaw.errors import ConfigError, nearest
from seesaw.measure.cuda_limits import gpu_state


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    device: str
    environment: dict[str, Any]
    states: dict[str, dict[str, str]]
    findings: Findings
    goals: tuple[Goal, ...]
    no_limits: str | None
    plots: tuple[Path, ...]

    def figures(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        names = ("op", "case", "provider", "why")
        found = self.findings
        return {
            "device": self.device,
            "environment": self.environment,
            "gpu_states": self.states,
            "limits": {op: dict(limits) for op, limits in found.limits.items()},
            "rows": [row.figures() for row in found.rows],
            "goals": [{**asdict(goal), "met": goal.met} for goal in self.goals],
            "skipped": [dict(zip(names, one, strict=True)) for one in found.skipped],
            "failed": [dict(zip(names, one, strict=True)) for one in found.failed],
        }

    def lines(self) -> Iterator[str]:
        yield from report.table(self.findings.rows)
        yield from report.notes(self.findings)
        if self.no_limits is not None:
            yield f"shares of limits are not known: {self.no_limits}"
        yield from report.goal_table(self.goals)
        yield from (f"wrote {path}" for path in self.plots)


def measure(
    ops: Sequence[str],
    dtype: str | None,
    providers: str,
    device: str,
    *,
    quick: bool,
    within_s: float | None,
    plot: str | None,
) -> Measured:
    """Raises ConfigError before any work for an unknown op or provider, a device that is not there,
    or a folder that plots cannot go to."""
    chosen = _providers(providers)
    where = _device(device)
    folder = None if plot is None else _plot_folder(Path(plot))
    jobs = choose(ops, dtype, where, quick=quick)
    print(f"{len(jobs)} shapes of {len({job.op.name for job in jobs})} ops", file=sys.stderr)
    states = {}
    with torch.inference_mode():
        bencher = Bencher(where, quick=quick)
        if where.type == "cuda":
            states["before"] = gpu_state(where)
        findings = run(jobs, chosen, bencher, _Progress(len(jobs)), within_s)
        if where.type == "cuda":
            states["after"] = gpu_state(where)
    return Measured(
        device=torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
        environment=environment(),
        states=states,
        findings=findings,
        goals=tuple(goals(findings.rows)),
        no_limits=bencher.no_limits,
        plots=() if folder is None else tuple(report.plot(findings.rows, folder)),
    )


class _Progress:
    """A line for each job on standard error: the last one of a run that hangs or dies is where."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0

    def __call__(self, what: str) -> None:
        self._done += 1
        print(f"  {self._done}/{self._total} {what}", file=sys.stderr, flush=True)


def _providers(text: str) -> list[str]:
    found = [part.strip() for part in text.split(",") if part.strip()]
    for name in found:
        if name not in PROVIDERS:
            raise ConfigError(
                f"--providers {name}: not known.{nearest(name, PROVIDERS)} "
                f"Expected some of {','.join(PROVIDERS)}."
            )
    if not found:
        raise ConfigError(f"--providers: expected some of {','.join(PROVIDERS)}.")
    return found


def _device(name: str) -> torch.device:
    from seesaw.engine.loader import pick_device

    found = pick_device(name)
    if found.type == "cuda" and found.index is None:
        found = torch.device("cuda", torch.cuda.current_device())
    return found


def _plot_folder(path: Path) -> Path:
    from seesaw.api.plots import check_plot_file

    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--plot {path}: {error.strerror}.") from error
    check_plot_file(path / "op.png")
    return path
