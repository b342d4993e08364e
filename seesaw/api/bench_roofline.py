"""Steps of a run against what this machine can do: a point for each on a roofline.

The least bytes and flops of a step are counted by `plan.traffic`, its seconds are the engine's own,
and the limits are measured beside the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from seesaw.errors import ConfigError
from seesaw.families.spec import ModelSpec
from seesaw.measure.limits import Limits, LimitsProbe
from seesaw.plan.cost_model import ELEMENT_BYTES
from seesaw.plan.traffic import Traffic, TrafficCounter
from seesaw.scheduler.output import SchedulerOutput

Kind = Literal["prefill", "mixed", "decode"]
KINDS: tuple[Kind, ...] = ("prefill", "mixed", "decode")
"""A step computes prompts, answers (one token a row), or both."""


@dataclass(frozen=True, slots=True)
class StepPoint:
    kind: Kind
    num_rows: int
    num_tokens: int
    seconds: float
    num_bytes: float
    flops: float


@dataclass(slots=True)
class StepRecorder:
    """Takes in an engine's steps, as its observer."""

    counter: TrafficCounter
    points: list[StepPoint] = field(default_factory=list)

    @classmethod
    def of(cls, spec: ModelSpec, dtype: str) -> StepRecorder:
        return cls(TrafficCounter(spec, ELEMENT_BYTES[dtype]))

    def __call__(self, step: SchedulerOutput, seconds: float) -> None:
        traffic, rows = Traffic(), step.rows
        if not rows or seconds <= 0:
            return  # nothing but transfers
        for batch in step.batches:
            traffic.add(
                self.counter.step(
                    (
                        row.num_tokens,
                        row.token_start + row.num_tokens,
                        row.samples,
                        row.layer_start,
                        row.layer_stop,
                    )
                    for row in batch.rows
                )
            )
        single = [row.num_tokens == 1 for row in rows]
        kind: Kind = "decode" if all(single) else "mixed" if any(single) else "prefill"
        self.points.append(
            StepPoint(
                kind,
                len(rows),
                sum(row.num_tokens for row in rows),
                seconds,
                traffic.num_bytes,
                traffic.flops,
            )
        )


def prepare(plot: str, device: str) -> LimitsProbe:
    """Before any work: raises ConfigError where there will be no limits, or no file."""
    from seesaw.api.plots import check_plot_file
    from seesaw.engine.loader import pick_device

    check_plot_file(plot)
    if (found := pick_device(device)).type != "cpu":
        raise ConfigError(
            f"--plot {plot}: this machine's limits are measured on the CPU, and the model runs on "
            f"{found}. Add --device cpu, or leave --plot out."
        )
    return LimitsProbe()


def roofline(points: Sequence[StepPoint], limits: Limits, dtype: str) -> dict[str, Any]:
    """Plain data: the limits, sums for each kind of step with their rates, and all points.

    `of_bound`: the seconds that reading or computing would take at the limits, the longer of the
    two for each step, over the seconds that were taken.
    """
    kinds: dict[str, Any] = {}
    for kind in KINDS:
        those = [point for point in points if point.kind == kind]
        if not those:
            continue
        seconds = sum(point.seconds for point in those)
        num_bytes, flops = (sum(getattr(p, name) for p in those) for name in ("num_bytes", "flops"))
        bound_s = sum(limits.bound_s(point.num_bytes, point.flops, dtype) for point in those)
        kinds[kind] = {
            "num_steps": len(those),
            "seconds": seconds,
            "num_bytes": num_bytes,
            "flops": flops,
            "bytes_per_s": num_bytes / seconds,
            "flops_per_s": flops / seconds,
            "flops_per_byte": flops / num_bytes,
            "of_bound": bound_s / seconds,
        }
    return {
        "dtype": dtype,
        "limits": {**limits.figures(), "flops": limits.flops(dtype)},
        "steps": kinds,
        "points": [
            {name: getattr(point, name) for name in StepPoint.__dataclass_fields__}
            for point in points
        ],
    }


def describe(found: dict[str, Any]) -> str:
    """For people, in 80 columns."""
    limits = found["limits"]
    lines = [
        f"limits: {limits['read_bytes_per_s'] / 1e9:.1f} GB/s, {limits['flops'] / 1e9:,.0f} "
        f"GFLOP/s in {found['dtype']} ({limits['isa']}, {limits['num_threads']} threads)"
    ]
    for kind, sums in found["steps"].items():
        lines.append(
            f"{kind:<8} {sums['num_steps']:5d} steps {sums['seconds']:8.2f} s "
            f"{sums['flops_per_s'] / 1e9:8,.0f} GFLOP/s {sums['bytes_per_s'] / 1e9:6.1f} GB/s "
            f"{sums['of_bound']:5.0%} of the bound"
        )
    return "\n".join(lines)


def plot(found: dict[str, Any], path: str, title: str) -> None:
    """All points, by kind, under the limits."""
    from seesaw.api import plots

    series: dict[str, list[tuple[float, float]]] = {}
    for kind, sums in found["steps"].items():
        count = sums["num_steps"]
        steps = f"{count} step{'s' if count > 1 else ''}"
        name = f"{kind}: {steps}, {sums['of_bound']:.0%} of the bound"
        series[name] = [
            (point["flops"] / point["num_bytes"], point["flops"] / point["seconds"])
            for point in found["points"]
            if point["kind"] == kind
        ]
    limits = found["limits"]
    plots.roofline(
        series,
        path,
        title,
        bytes_per_s=limits["read_bytes_per_s"],
        flops_per_s=limits["flops"],
    )
