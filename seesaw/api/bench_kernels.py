"""What single ops reach of what this machine can do, beside other implementations of the same.

A job is an op with one of the shapes that it lists as `bench`. All providers of a job are timed in
turns, and the machine's limits beside each op, since both drift.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import torch

from seesaw.api.bench_peers import PEERS, plain, why_not
from seesaw.errors import ConfigError, UnsupportedError, nearest
from seesaw.measure.cuda_clock import CudaClock
from seesaw.measure.cuda_limits import CudaLimitsProbe
from seesaw.measure.limits import CACHES_IN_BUFFER, LimitsProbe, last_cache_bytes
from seesaw.measure.lost import is_lost
from seesaw.measure.page_locked import page_locked
from seesaw.measure.timer import Call, Clock, Timing, alternate, host_clock
from seesaw.ops import OPS
from seesaw.ops.registry import Bench, Op

PROVIDERS = ("seesaw", "torch", "flex", "flashinfer")
LEAST_CACHE_BYTES = 32 * 2**20
MOST_COPIES = 256
CUDA_BATCHES, CUDA_BATCH_S = 15, 0.003
CPU_BATCHES, CPU_BATCH_S = 7, 0.01
QUICK = 3
"""Batches of each, and cases of each op, where it is to be quick."""

Inputs = dict[str, Any]


class Limits(Protocol):
    def rate(self, what: str, dtype: str) -> float | None: ...
    def figures(self) -> Mapping[str, Any]: ...
    def describe(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Job:
    op: Op
    name: str
    bench: Bench


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Figures of one provider at one shape. Shares of limits are None where there is no limit.

    of_memory, of_matmul   least bytes, least flops, per second, of what the device copies and
                           multiplies
    of_limit               of the larger of the two, or of the bus where `link` names its direction
    """

    op: str
    case: str
    dtype: str
    provider: str
    p20_s: float
    p50_s: float
    p80_s: float
    best_s: float
    num_bytes: int
    flops: int
    link: str | None
    of_memory: float | None
    of_matmul: float | None
    of_limit: float | None
    aim: float | None

    @property
    def gb_per_s(self) -> float:
        return self.num_bytes / self.p50_s / 1e9

    @property
    def tflop_per_s(self) -> float:
        return self.flops / self.p50_s / 1e12

    def figures(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {**asdict(self), "gb_per_s": self.gb_per_s, "tflop_per_s": self.tflop_per_s}


@dataclass(slots=True)
class Findings:
    """`skipped` and `failed`: (op, case, provider, why)."""

    rows: list[Row] = field(default_factory=list)
    skipped: list[tuple[str, str, str, str]] = field(default_factory=list)
    failed: list[tuple[str, str, str, str]] = field(default_factory=list)
    limits: dict[str, Mapping[str, Any]] = field(default_factory=dict)


class Bencher:
    """Times jobs on one device. Without the C++ module a CPU has no limits to compare with.

    quick: a few batches only.
    """

    def __init__(self, device: torch.device, *, quick: bool = False) -> None:
        self.device = device
        self.clock: Clock = host_clock
        self.no_limits: str | None = None
        self._probe: LimitsProbe | CudaLimitsProbe | None = None
        self._batches, self._batch_s = CPU_BATCHES, CPU_BATCH_S
        self._cache_bytes = max(LEAST_CACHE_BYTES, last_cache_bytes())
        if device.type == "cuda":
            self.clock = CudaClock(device)
            self._probe = CudaLimitsProbe(device, self.clock)
            self._batches, self._batch_s = CUDA_BATCHES, CUDA_BATCH_S
            self._cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        else:
            try:
                self._probe = LimitsProbe()
            except ConfigError as error:
                self.no_limits = str(error)
        if quick:
            self._batches = QUICK

    def limits(self) -> Limits | None:
        """Measured now."""
        return None if self._probe is None else self._probe.measure()

    def time(self, job: Job, providers: Sequence[str], findings: Findings) -> dict[str, Timing]:
        """Seconds of a call by provider. What a provider lacks goes to `skipped`, what raises or
        differs from this package's result to `failed`."""
        copies = self.inputs(job)
        calls: dict[str, Call] = {}
        for provider in self.offered(job.op, providers):
            where = (job.op.name, job.name, provider)
            try:
                own = _prepare(job, provider, copies, self.device)
                # What is compared with must be the same thing; both are slow before they are warm.
                if provider != "seesaw" and (job.op.name in PEERS or not job.op.mutates):
                    _compare(job, copies[0], own[0])
                calls[provider] = _in_turn(own)
            except UnsupportedError as error:
                findings.skipped.append((*where, str(error)))
            except Exception as error:
                findings.failed.append((*where, f"{type(error).__name__}: {error}"))
        if not calls:
            return {}
        return alternate(calls, batches=self._batches, batch_s=self._batch_s, clock=self.clock)

    def offered(self, op: Op, providers: Sequence[str]) -> list[str]:
        """Those of `providers` that there are of `op` on this device."""
        others = PEERS.get(op.name, {"torch": None} if self.device.type == "cuda" else {})
        return [name for name in providers if name == "seesaw" or name in others]

    def inputs(self, job: Job) -> list[Inputs]:
        """So many sets of inputs that one has left the caches when its turn comes again."""
        num_bytes = job.op.cost(job.bench.case, job.bench.dtype).num_bytes
        copies = 1
        if job.bench.cold or self.device.type == "cuda":
            wanted = math.ceil(CACHES_IN_BUFFER * self._cache_bytes / max(1, num_bytes))
            copies = min(MOST_COPIES, wanted)
        generator = torch.Generator(self.device).manual_seed(0)
        found = []
        for _ in range(copies):
            with torch.device(self.device):
                inputs = job.op.make_inputs(generator, job.bench.case, job.bench.dtype)
            for name in job.bench.host if self.device.type == "cuda" else ():
                inputs[name] = page_locked(inputs[name])
            found.append(inputs)
        return found


def _prepare(job: Job, provider: str, copies: Sequence[Inputs], device: torch.device) -> list[Call]:
    op = job.op
    if provider == "seesaw":
        return [_call(op.function, inputs) for inputs in copies]
    if (why := why_not(provider, device)) is not None:
        raise UnsupportedError(why)
    if job.bench.host and device.type == "cuda":
        raise UnsupportedError("plain torch wants all tensors on one device")
    peer = PEERS[op.name][provider] if op.name in PEERS else plain(op.function)
    return [peer(inputs) for inputs in copies]


def _call(function: Callable[..., Any], inputs: Inputs) -> Call:
    return lambda: function(**inputs)


def _in_turn(calls: Sequence[Call]) -> Call:
    if len(calls) == 1:
        return calls[0]
    turns = itertools.cycle(calls)
    return lambda: next(turns)()


def _compare(job: Job, inputs: Inputs, call: Call) -> None:
    tolerance = job.op.tolerance[job.bench.dtype]
    ours, theirs = _first(job.op.function(**inputs)), _first(call())
    torch.testing.assert_close(theirs, ours, atol=tolerance.atol, rtol=tolerance.rtol)


def _first(result: Any) -> Any:
    return result[0] if isinstance(result, tuple) else result


def row(job: Job, provider: str, timing: Timing, limits: Limits | None) -> Row:
    cost, kind = job.op.cost(job.bench.case, job.bench.dtype), _name(job.bench.dtype)
    seconds = timing.median_s

    def share(what: str, amount: int) -> float | None:
        rate = None if limits is None else limits.rate(what, kind)
        return None if rate is None else amount / seconds / rate

    of_memory, of_matmul = share("memory", cost.num_bytes), share("matmul", cost.flops)
    link = job.bench.link
    if link is not None:
        of_limit = share(link, job.bench.link_bytes)
    else:
        of_limit = None if of_memory is None else max(of_memory, of_matmul or 0.0)
    return Row(
        op=job.op.name,
        case=job.name,
        dtype=kind,
        provider=provider,
        p20_s=timing.quantile_s(0.2),
        p50_s=seconds,
        p80_s=timing.quantile_s(0.8),
        best_s=timing.best_s,
        num_bytes=cost.num_bytes,
        flops=cost.flops,
        link=link,
        of_memory=of_memory,
        of_matmul=of_matmul,
        of_limit=of_limit,
        aim=job.bench.aim if provider == "seesaw" else None,
    )


def choose(
    names: Sequence[str], dtype: str | None, device: torch.device, *, quick: bool = False
) -> list[Job]:
    """Jobs of the ops called `names` (all without any) on `device`, in `dtype` where it is given,
    else in each shape's own. Raises ConfigError for an unknown op, or where nothing is left."""
    for name in names:
        if name not in OPS:
            raise ConfigError(
                f"--op {name}: no such op.{nearest(name, OPS)} Known: {', '.join(OPS)}."
            )
    jobs = []
    for op in OPS.values():
        if names and op.name not in names:
            continue
        own = [
            Job(op, label, bench if dtype is None else _in_dtype(bench, dtype))
            for label, bench in op.bench.items()
            if device.type in bench.devices
        ]
        own = [job for job in own if job.bench.dtype in op.tolerance]
        jobs += own[:QUICK] if quick else own
    if not jobs:
        raise ConfigError(
            f"no shape to time on {device.type}: --op {', '.join(names)}, --dtype {dtype}."
        )
    return jobs


def _in_dtype(bench: Bench, dtype: str) -> Bench:
    return replace(bench, dtype=getattr(torch, dtype))


def run(
    jobs: Sequence[Job],
    providers: Sequence[str],
    bencher: Bencher,
    progress: Callable[[str], None],
    within_s: float | None = None,
) -> Findings:
    """Times all jobs, beginning none after `within_s`. An op that fails stops no other one, unless
    it takes the GPU from this process."""
    findings = Findings()
    end_s = math.inf if within_s is None else time.monotonic() + within_s
    lost = ""
    for op, own in itertools.groupby(jobs, key=lambda job: job.op.name):
        limits = bencher.limits() if time.monotonic() < end_s and not lost else None
        if limits is not None:
            findings.limits[op] = limits.figures()
        for job in own:
            if lost or time.monotonic() >= end_s:
                findings.skipped.append((op, job.name, "shapes", lost or "no time was left"))
                continue
            progress(f"{op}: {job.name}")
            num_failed, timings = len(findings.failed), dict[str, Timing]()
            try:
                timings = bencher.time(job, providers, findings)
            except Exception as error:
                findings.failed.append((op, job.name, "", f"{type(error).__name__}: {error}"))
            if len(findings.failed) > num_failed and is_lost():
                lost = f"the GPU has failed in {op}, {job.name}"
            findings.rows += [row(job, name, one, limits) for name, one in timings.items()]
    return findings


@dataclass(frozen=True, slots=True)
class Goal:
    """`value` of `op` at `case` beside what it is to reach at least."""

    op: str
    case: str
    what: str
    value: float
    least: float

    @property
    def met(self) -> bool:
        return self.value >= self.least


LEAST_SPEED = {"torch": 1.0, "flex": 1.0, "flashinfer": 0.95}
"""Of this package's attention over that provider's, where both run."""


def goals(rows: Sequence[Row]) -> Iterator[Goal]:
    """What is aimed at, of the limits and beside other implementations of attention."""
    for own in rows:
        if own.provider != "seesaw":
            continue
        if own.aim is not None and own.of_limit is not None:
            yield Goal(own.op, own.case, "of the limit", own.of_limit, own.aim)
        for other in rows:
            beside = (other.op, other.case, other.dtype) == (own.op, own.case, own.dtype)
            if beside and own.op in PEERS and other.provider in LEAST_SPEED:
                speed = other.p50_s / own.p50_s
                least = LEAST_SPEED[other.provider]
                yield Goal(own.op, own.case, f"speed over {other.provider}", speed, least)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
