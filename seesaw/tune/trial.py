"""A process that tries configurations on the card, one at a time: `python -m seesaw.tune.trial`.

Reads a request per line and answers each with a line, both JSON. Whatever a bad configuration does
(a fault, a hang, a dead context) ends here and not in the tuner, which starts another process.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from triton.runtime.errors import OutOfResources

from seesaw.kernels import tuning
from seesaw.kernels.kernel import Config, Kernel, Key
from seesaw.kernels.registry import kernels
from seesaw.kernels.target import target_of
from seesaw.measure.cuda_clock import CudaClock
from seesaw.measure.timer import alternate
from seesaw.ops import OPS
from seesaw.ops.registry import Op, Tolerance
from seesaw.tune.units import Card, Outcome, Unit, Work

BATCHES = 9
BATCH_S = 0.02
CACHES = 3
"""Inputs go round in so many times the L2's size, so that none is read from there."""
MOST_COPIES = 64

Inputs = dict[str, Any]


class Wrong(Exception):
    """A result that differs from what it must be."""


class Bench:
    """Makes inputs, checks results and takes times on one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._clock = CudaClock(device)

    def card(self) -> Card:
        target = target_of(self._device)
        name = torch.cuda.get_device_name(self._device)
        return Card(name, target.capability, tuning.triton_version(), _clocks_mhz())

    def units(self, works: Iterable[Work]) -> list[Unit]:
        """What can be tuned of the launches that `works` make, each key once."""
        found: dict[str, Unit] = {}
        for work in works:
            for kernel, key in self._keys(work):
                if kernel.candidates is None:
                    continue
                candidates = kernel.candidates(key, target_of(self._device))
                unit = Unit(kernel.name, key, (work,), candidates)
                known = found.get(unit.label)
                if known is not None:
                    unit = Unit(kernel.name, key, (*known.work, work), candidates)
                found[unit.label] = unit
        return list(found.values())

    def attempt(self, unit: Unit, config: Config) -> Outcome:
        """Errors of CUDA pass through: the process is of no use after them."""
        kernel = kernels()[unit.kernel]
        try:
            self._verify(kernel, unit, config)
            return self._time(kernel, unit, config)
        except OutOfResources as error:
            return Outcome(status="does not fit", why=str(error))
        except Wrong as error:
            return Outcome(status="wrong", why=str(error))

    def _inputs(self, work: Work, seed: int) -> Inputs:
        op, dtype = OPS[work.op], getattr(torch, work.dtype)
        made = op.make_inputs(torch.Generator().manual_seed(seed), work.case, dtype)
        return {name: _placed(value, self._device) for name, value in made.items()}

    def _keys(self, work: Work) -> list[tuple[Kernel, Key]]:
        heard: list[tuple[Kernel, Key]] = []
        with tuning.listening(lambda kernel, key: heard.append((kernel, dict(key)))):
            OPS[work.op].function(**self._inputs(work, 0))
        return heard

    def _verify(self, kernel: Kernel, unit: Unit, config: Config) -> None:
        """Against the reference on the op's own small cases with this key, or where there is none
        on the unit's calls; and there against what the default computes."""
        small = [work for work in self._small(unit) if self._has(work, unit)]
        for work in small or unit.work:
            op = OPS[work.op]
            expected = self._run(op.reference, work)
            with tuning.forced(kernel, config):
                got = self._run(op.function, work)
            _compare(op, work, got, expected, 1.0)
        for work in unit.work if small else ():
            op = OPS[work.op]
            with tuning.forced(kernel, kernel.default(unit.key, target_of(self._device))):
                expected = self._run(op.function, work)
            with tuning.forced(kernel, config):
                got = self._run(op.function, work)
            _compare(op, work, got, expected, 2.0)  # either may be off by the tolerance

    def _small(self, unit: Unit) -> list[Work]:
        kinds = {(work.op, work.dtype) for work in unit.work}
        return [Work(op, case, dtype) for op, dtype in sorted(kinds) for case in OPS[op].cases]

    def _has(self, work: Work, unit: Unit) -> bool:
        return any(
            kernel.name == unit.kernel and dict(key) == dict(unit.key)
            for kernel, key in self._keys(work)
        )

    def _run(self, call: Callable[..., Any], work: Work) -> list[torch.Tensor]:
        """Results and what was changed, of the same random inputs each time."""
        inputs = self._inputs(work, seed=1)
        result = call(**inputs)
        results = result if isinstance(result, tuple) else (result,)
        changed = [inputs[name] for name in OPS[work.op].mutates]
        return [one for one in (*results, *changed) if isinstance(one, torch.Tensor)]

    def _time(self, kernel: Kernel, unit: Unit, config: Config) -> Outcome:
        default = kernel.default(unit.key, target_of(self._device))
        median_us = default_us = noise_us = 0.0
        for work in unit.work:
            calls = {
                name: self._timed_call(kernel, work, one)
                for name, one in (("default", default), ("candidate", config))
            }
            times = alternate(calls, batches=BATCHES, batch_s=BATCH_S, clock=self._clock)
            median_us += times["candidate"].median_s * 1e6
            default_us += times["default"].median_s * 1e6
            spreads = [time.quantile_s(0.8) - time.quantile_s(0.2) for time in times.values()]
            noise_us += max(spreads) * 1e6
        return Outcome(status="ok", median_us=median_us, default_us=default_us, noise_us=noise_us)

    def _timed_call(self, kernel: Kernel, work: Work, config: Config) -> Callable[[], object]:
        op = OPS[work.op]
        num_bytes = op.cost(work.case, getattr(torch, work.dtype)).num_bytes
        l2_bytes = torch.cuda.get_device_properties(self._device).L2_cache_size
        copies = max(2, min(MOST_COPIES, math.ceil(CACHES * l2_bytes / max(1, num_bytes))))
        inputs = [self._inputs(work, seed) for seed in range(copies)]
        turn = 0

        def call() -> object:
            nonlocal turn
            turn = (turn + 1) % copies
            with tuning.forced(kernel, config):
                return op.function(**inputs[turn])

        return call


def _placed(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _compare(
    op: Op, work: Work, got: list[torch.Tensor], expected: list[torch.Tensor], slack: float
) -> None:
    tolerance: Tolerance = op.tolerance[getattr(torch, work.dtype)]
    for one, other in zip(got, expected, strict=True):
        try:
            torch.testing.assert_close(
                one, other, atol=slack * tolerance.atol, rtol=slack * tolerance.rtol,
                equal_nan=True,
            )  # fmt: skip
        except AssertionError as error:
            raise Wrong(f"{op.name} {dict(work.case)}: {error}") from error


def _clocks_mhz() -> dict[str, int]:
    """Highest clocks that the driver allows at present; empty where it does not say."""
    query = [
        "nvidia-smi",
        "--query-gpu=clocks.max.sm,clocks.max.mem",
        "--format=csv,noheader,nounits",
    ]
    try:
        text = subprocess.check_output(query, text=True, timeout=20)
        sm, memory = text.splitlines()[0].split(",")
        return {"sm": int(sm), "memory": int(memory)}
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return {}


def answer(bench: Bench, request: Mapping[str, Any]) -> Any:
    if request["do"] == "card":
        return asdict(bench.card())
    if request["do"] == "units":
        return [asdict(unit) for unit in bench.units(Work(**one) for one in request["work"])]
    unit, config = request["unit"], Config(**request["config"])
    works = tuple(Work(**one) for one in unit["work"])
    tried = Unit(unit["kernel"], unit["key"], works, ())
    return asdict(bench.attempt(tried, config))


def main() -> int:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply
    bench = Bench(torch.device("cuda", torch.cuda.current_device()))
    for line in sys.stdin:
        reply = answer(bench, json.loads(line))
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
