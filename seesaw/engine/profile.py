"""Where the time of steps goes, with `profile=True`: a rank's clock, and the sum over steps that
the driver keeps. What parts there are is the business of the runner and, for kernels on the CPU, of
csrc/cpu/decoder.h.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from seesaw.scheduler.output import SchedulerOutput

BETWEEN = "between steps"
"""What is left of the time from one finished step to the next: planning that was not hidden,
messages between threads or processes."""


class StepClock:
    """Seconds by part of one step on one rank; does nothing where it is not `on`. On CUDA it waits
    for the device at each mark, which costs some of the overlap that it measures."""

    def __init__(self, on: bool, device: torch.device) -> None:
        self.on = on
        self._device = device
        self._parts: dict[str, float] = {}
        self._last_s = 0.0

    def begin(self) -> None:
        """A step begins."""
        if self.on:
            self._parts = {}
            self._last_s = time.perf_counter()

    def mark(self, part: str) -> None:
        """The time since the last mark belongs to `part`."""
        if not self.on:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now_s = time.perf_counter()
        self._parts[part] = self._parts.get(part, 0.0) + now_s - self._last_s
        self._last_s = now_s

    def split(self, part: str, finer: Mapping[str, float]) -> None:
        """`finer` says more of what was marked as `part`, which keeps the rest."""
        if self.on and finer:
            self._parts[part] -= sum(finer.values())
            for name, seconds in finer.items():
                self._parts[name] = self._parts.get(name, 0.0) + seconds

    def end(self) -> dict[str, float]:
        return self._parts


@dataclass(slots=True)
class StepKind:
    """Steps of one kind: how many, their tokens, seconds by part."""

    steps: int = 0
    tokens: int = 0
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class StepProfile:
    """Over steps of all replicas, apart for those with prompts and those that only decode; of each
    step the parts of its slowest rank."""

    kinds: dict[str, StepKind] = field(default_factory=dict)

    def add(self, step: SchedulerOutput, parts: Mapping[str, float], elapsed_s: float) -> None:
        """One step; `elapsed_s` since the one before it came back."""
        num_rows = len(step.rows)
        kind = self.kinds.setdefault(
            "prompts" if step.num_tokens > num_rows else "decode", StepKind()
        )
        kind.steps += 1
        kind.tokens += step.num_tokens
        between_s = max(0.0, elapsed_s - sum(parts.values()))
        for name, seconds in (*parts.items(), (BETWEEN, between_s)):
            kind.parts[name] = kind.parts.get(name, 0.0) + seconds

    def figures(self) -> dict[str, Any]:
        """For JSON: of each kind of step the number, tokens, and seconds in all by part."""
        return {
            name: {"steps": kind.steps, "tokens": kind.tokens, "parts_s": dict(kind.parts)}
            for name, kind in self.kinds.items()
        }


def describe(figures: Mapping[str, Any]) -> str:
    """A table of `StepProfile.figures` for people: of each kind of step ms and share by part."""
    totals: dict[str, float] = {}
    for kind in figures.values():
        for name, seconds in kind["parts_s"].items():
            totals[name] = totals.get(name, 0.0) + seconds
    width = max(map(len, totals), default=0) + 2
    lines = [" " * width + "".join(f"{f'{name}, ms a step':>27}" for name in figures)]
    for name in sorted(totals, key=lambda name: -totals[name]):
        line = f"{name:<{width}}"
        for kind in figures.values():
            seconds, total_s = kind["parts_s"].get(name, 0.0), sum(kind["parts_s"].values())
            line += f"{1e3 * seconds / kind['steps']:>18.3f} {seconds / total_s:>8.1%}"
        lines.append(line)
    line = f"{'all':<{width}}"
    for kind in figures.values():
        total_s, times = sum(kind["parts_s"].values()), f"x {kind['steps']}"
        line += f"{1e3 * total_s / kind['steps']:>18.3f} {times:>8}"
    return "\n".join([*lines, line])
