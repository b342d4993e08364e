"""A process that tries configurations on the card, one at a time: `python -m seesaw.tune.trial`.

Reads a request per line and answers each with a line, both JSON. Whatever a bad configuration does
(a fault, a hang, a dead context) ends here and not in the tuner, which starts another process.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from triton.runtime.errors import OutOfResources

from seesaw.kernels import tuning
from seesaw.kernels.kernel import Config, Kernel, Key
from seesaw.kernels.registry import kernels
from seesaw.kernels.target import target_of
from seesaw.measure.cuda_clock import CudaClock
from seesaw.measure.page_locked import page_locked
from seesaw.measure.timer import Clock, alternate, host_clock
from seesaw.ops import OPS
from seesaw.ops.registry import Tolerance
from seesaw.tune.units import Card, Outcome, Unit, Work

BATCHES = 9
BATCH_S = 0.02
CACHES = 3
"""Inputs go round in so many times the L2's size, so that none is read from there."""
MOST_COPIES = 64
REFERENCE_BYTES, REFERENCE_FLOPS = 32e6, 2e9
"""A call that a reference, which loops over tokens or keys, is asked for costs at most so much."""

Inputs = dict[str, Any]


class Wrong(Exception):
    """A result that differs from what it must be."""


class Bench:
    """Makes inputs, checks results and takes times on one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._clock: Clock = CudaClock(device) if device.type == "cuda" else host_clock
        self._expected: dict[str, list[torch.Tensor]] = {}

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
        """Drawn on the device: the host would take longer than all that is measured."""
        op, dtype = OPS[work.op], getattr(torch, work.dtype)
        generator = torch.Generator(self._device).manual_seed(seed)
        with self._device:
            made = op.make_inputs(generator, work.case, dtype)
        if self._device.type == "cuda":
            made |= {name: page_locked(made[name]) for name in work.host}
        return made

    def _keys(self, work: Work) -> list[tuple[Kernel, Key]]:
        heard: list[tuple[Kernel, Key]] = []
        with tuning.listening(lambda kernel, key: heard.append((kernel, dict(key)))):
            OPS[work.op].function(**self._inputs(work, 0))
        return heard

    def _verify(self, kernel: Kernel, unit: Unit, config: Config) -> None:
        """Against the reference on the op's own small cases with this key, or where there is none
        on those of the unit's calls that are small enough for it; and on all of the unit's calls
        against what the default computes."""
        small = [work for work in self._small(unit) if self._has(work, unit)]
        for work in small or filter(_is_small, unit.work):
            with tuning.forced(kernel, config):
                got = self._run(OPS[work.op].function, work)
            _compare(work, got, self._reference(work), 1.0)
        default = kernel.default(unit.key, target_of(self._device))
        for work in unit.work:
            op = OPS[work.op]
            with tuning.forced(kernel, default):
                expected = self._run(op.function, work)
            with tuning.forced(kernel, config):
                got = self._run(op.function, work)
            _compare(work, got, expected, 2.0)  # either may be off by the tolerance

    def _reference(self, work: Work) -> list[torch.Tensor]:
        """On the device, all of it, and what it makes itself too."""
        name = repr(work)
        if name not in self._expected:
            with self._device:
                self._expected[name] = self._run(OPS[work.op].reference, replace(work, host=()))
        return self._expected[name]

    def _small(self, unit: Unit) -> list[Work]:
        kinds = {(work.op, work.dtype, tuple(work.host)) for work in unit.work}
        return [
            Work(op, case, dtype, host)
            for op, dtype, host in sorted(kinds)
            for case in OPS[op].cases
        ]

    def _has(self, work: Work, unit: Unit) -> bool:
        return any(
            kernel.name == unit.kernel and dict(key) == dict(unit.key)
            for kernel, key in self._keys(work)
        )

    def _run(self, call: Callable[..., Any], work: Work) -> list[torch.Tensor]:
        """Results and what was changed, of the same random inputs each time."""
        inputs = self._inputs(work, seed=1)
        result = call(**inputs)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # what is on the host is read from there
        results = result if isinstance(result, tuple) else (result,)
        changed = [inputs[name] for name in OPS[work.op].mutates]
        return [one for one in (*results, *changed) if isinstance(one, torch.Tensor)]

    def _time(self, kernel: Kernel, unit: Unit, config: Config) -> Outcome:
        default = kernel.default(unit.key, target_of(self._device))
        median_us = default_us = noise_us = 0.0
        for work in unit.work:
            copies = self._copies(work)
            calls = {
                name: _timed_call(kernel, work, one, copies)
                for name, one in (("default", default), ("candidate", config))
            }
            times = alternate(calls, batches=BATCHES, batch_s=BATCH_S, clock=self._clock)
            median_us += times["candidate"].median_s * 1e6
            default_us += times["default"].median_s * 1e6
            spreads = [time.quantile_s(0.8) - time.quantile_s(0.2) for time in times.values()]
            noise_us += max(spreads) * 1e6
        return Outcome(status="ok", median_us=median_us, default_us=default_us, noise_us=noise_us)

    def _copies(self, work: Work) -> list[Inputs]:
        num_bytes = OPS[work.op].cost(work.case, getattr(torch, work.dtype)).num_bytes
        l2_bytes = torch.cuda.get_device_properties(self._device).L2_cache_size
        copies = max(2, min(MOST_COPIES, math.ceil(CACHES * l2_bytes / max(1, num_bytes))))
        return [self._inputs(work, seed) for seed in range(copies)]


def _timed_call(
    kernel: Kernel, work: Work, config: Config, copies: Sequence[Inputs]
) -> Callable[[], object]:
    function = OPS[work.op].function
    turns = itertools.cycle(copies)

    def call() -> object:
        with tuning.forced(kernel, config):
            return function(**next(turns))

    return call


def _is_small(work: Work) -> bool:
    cost = OPS[work.op].cost(work.case, getattr(torch, work.dtype))
    return cost.num_bytes <= REFERENCE_BYTES and cost.flops <= REFERENCE_FLOPS


def _compare(
    work: Work, got: list[torch.Tensor], expected: list[torch.Tensor], slack: float
) -> None:
    tolerance: Tolerance = OPS[work.op].tolerance[getattr(torch, work.dtype)]
    for one, other in zip(got, expected, strict=True):
        try:
            torch.testing.assert_close(
                one, other.to(one.device), atol=slack * tolerance.atol, rtol=slack * tolerance.rtol,
                equal_nan=True,
            )  # fmt: skip
        except AssertionError as error:
            raise Wrong(f"{work.op} {dict(work.case)}: {error}") from error


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
