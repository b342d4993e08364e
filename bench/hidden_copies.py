"""What KV that moves behind a phase costs that phase, step by step, in units of memcpy.

usage: python bench/hidden_copies.py --model DIR_OR_GGUF [--seconds 200] [--prompts 24]
           [--input-len 1024] [--device-memory 1GiB] [--output-json FILE]

Two ranks of one core each, prompts in pp2, answers in tp2, a prompt a step. Two jobs take turns on
one engine. Answers of one token need no decode phase, so nothing is stored; all else is as in the
job whose answers are longer.

- Stores: each step of prefill against the step at the same place of the job beside it that stores
  nothing. Steps beside which KV is loaded already, and the ends of the phase, are left out.
- Loads: two answers end at a time and two stored ones are loaded while the others decode. The steps
  from a load's begin until its requests run against what steps of as many rows without a load take
  in the same job, by a straight line over their keys, and against what the steps before and after
  are off that line.
- Core time: what threads of the ranks other than those that compute had of the cores, moving job
  less plain one. It is what copies and their reports take at least, and is told on a disturbed
  machine too.
- Controls are the same with nothing moved: jobs that store nothing against each other, and steps
  without loads taken for some that load. They say what the method makes out of noise. Phases in
  which other processes took more than a twentieth of the cores are left out.

What a copy can cost: no core is left for it, so its thread takes time from the one that computes;
at best as much as copying takes by itself. Both ranks copy at a time. So the unit is (bytes of one
rank) / (rate of memcpy by one thread on each of two cores at once) in large blocks, which memcpy
moves past the caches. Beside it: with the other core at rest, and in pieces of a page from
scattered places, which is how KV lies. Pools and tier are touched before anything is measured: the
first write to a page of shared memory costs many times its copy, once in the life of an engine.

Stalls: seconds in which a rank had nothing to compute but for what was on its way, by stream, and
how much of each stream's copying was beside computing. These come from a traced engine after the
measurement.

Copies that cost a thousandth of a step are lost in the noise of prefill steps: a model with much KV
for its size shows them, such as `peers/random_llama.py --hidden 256 --head-dim 128` makes.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cores import Memcpy, Others, core_s_beside

from seesaw import SamplingParams
from seesaw.api.run_figures import run_figures
from seesaw.config import EngineConfig
from seesaw.engine.engine import Engine
from seesaw.layout.kv import TierShape
from seesaw.scheduler.output import SchedulerOutput
from seesaw.trace import TraceWriter, read_trace
from seesaw.weights.checkpoint import open_checkpoint

BOUND = 1.2
RESIDENT = 8
AT_ONCE = 2
"""Answers that end together, so that as many are loaded at a time."""
APART = 12
"""Steps of decode from one load to the next."""
NEAR = 4
"""Steps before and after a load that say how far off the line steps are there."""
ENDS = 3
"""Steps of prefill at either end, in which a stage is idle or the next phase is prepared."""
OTHERS = 0.05
"""Most of the cores' time that other processes may take in a phase."""
CERTAINTY = 0.95
RESAMPLES = 2000


# -- runs ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """One that came back `seconds` after the one before; `keys` that its rows read; `waiting`: KV
    of a request was being loaded."""

    rows: int
    keys: int
    seconds: float
    loads: bool
    waiting: bool


@dataclass(slots=True)
class Job:
    """Its steps with rows, and the share of the cores that others took, by phase; bytes that a rank
    copied; seconds of stalls by name."""

    steps: dict[str, list[Step]] = field(default_factory=dict)
    others: dict[str, float] = field(default_factory=dict)
    store_bytes: float = 0.0
    load_bytes: float = 0.0
    stalls: dict[str, float] = field(default_factory=dict)
    core_s: float = 0.0
    """That the ranks' threads beside computing had, mean over ranks."""

    def is_quiet(self, phase: str) -> bool:
        return self.others[phase] <= OTHERS


class Bench:
    def __init__(self, engine: Engine, num_prompts: int, input_len: int) -> None:
        self._engine = engine
        self._num_prompts = num_prompts
        self._input_len = input_len
        self._rng = random.Random(0)
        self._number = 0

    def plain(self) -> Job:
        """Nothing is stored."""
        job = self._run([1] * self._num_prompts)
        assert job.store_bytes == 0 == job.load_bytes, job
        return job

    def moving(self) -> Job:
        return self._run(answer_lengths(self._num_prompts))

    def _run(self, answers: Sequence[int]) -> Job:
        """An answer of each length."""
        self._number += 1
        before, core_s = copy.deepcopy(self._engine.stats.transfers), core_s_beside()
        job, loading, since = Job(), set[str](), ("", Others())

        def observe(step: SchedulerOutput, seconds: float) -> None:
            nonlocal since
            rows = list(step.rows)
            if step.phase != since[0]:
                job.others[since[0]] = since[1].share()
                since = step.phase, Others()
            loading.difference_update(row.request_id for row in rows)
            loading.update(load.request_id for load in step.loads)
            keys = sum(row.token_start + row.num_tokens for row in rows)
            one = Step(len(rows), keys, seconds, bool(step.loads), bool(loading))
            if rows:
                job.steps.setdefault(step.phase, []).append(one)

        self._engine.observe_steps(observe)
        for number, length in enumerate(answers):
            prompt = [self._rng.randrange(self._engine.vocab_size) for _ in range(self._input_len)]
            sampling = SamplingParams(temperature=0, ignore_eos=True, max_tokens=length)
            self._engine.add_request(f"{self._number}/{number}", prompt, sampling)
        while self._engine.has_unfinished_requests():
            self._engine.step()
        self._engine.settle()
        self._engine.observe_steps(None)
        job.others[since[0]] = since[1].share()
        after = self._engine.stats.transfers
        job.core_s = (core_s_beside() - core_s) / 2
        job.store_bytes = (after.kv_store_bytes - before.kv_store_bytes) / 2
        job.load_bytes = (after.kv_load_bytes - before.kv_load_bytes) / 2
        earlier = asdict(before.stalls)
        job.stalls = {name: now - earlier[name] for name, now in asdict(after.stalls).items()}
        return job


def answer_lengths(num_prompts: int) -> list[int]:
    """The first ones end AT_ONCE at a time every APART steps, and so do those that follow them."""
    groups = RESIDENT // AT_ONCE
    return [1 + APART * min(groups, number // AT_ONCE + 1) for number in range(num_prompts)]


# -- what they say ---------------------------------------------------------------------------------


def prefill_pairs(plain: Job, other: Job) -> list[float]:
    """Seconds by which steps of `other` are longer than those at the same place of `plain`; none
    where either was disturbed."""
    if not (plain.is_quiet("prefill") and other.is_quiet("prefill")):
        return []
    ours, theirs = plain.steps["prefill"], other.steps["prefill"]
    last_load = max((at for at, step in enumerate(theirs) if step.loads), default=0)
    places = range(max(ENDS, last_load + 2), len(ours) - ENDS)
    return [theirs[at].seconds - ours[at].seconds for at in places]


def load_windows(steps: Sequence[Step]) -> list[range]:
    """Where steps of decode ran beside a load: from its begin until its requests run."""
    windows, at = [], 0
    while at < len(steps):
        begin = at
        while at < len(steps) and steps[at].waiting:
            at += 1
        if at > begin:
            windows.append(range(begin, at))
        at += 1
    return windows


def off_the_line(steps: Sequence[Step], free: Sequence[int]) -> list[float]:
    """Seconds that each step took beyond what the steps `free` of as many rows do, with a line over
    keys whose slope all of them share; NaN where there are none."""
    by_rows: dict[int, list[int]] = {}
    for at in free:
        by_rows.setdefault(steps[at].rows, []).append(at)
    means = {
        rows: (
            statistics.mean(steps[at].keys for at in places),
            statistics.median(steps[at].seconds for at in places),
        )
        for rows, places in by_rows.items()
    }
    x = [steps[at].keys - means[steps[at].rows][0] for at in free]
    y = [steps[at].seconds - means[steps[at].rows][1] for at in free]
    slope = sum(a * b for a, b in zip(x, y, strict=True)) / max(1.0, sum(a * a for a in x))
    found = []
    for step in steps:
        keys, seconds = means.get(step.rows, (0.0, float("nan")))
        found.append(step.seconds - seconds - slope * (step.keys - keys))
    return found


def decode_extras(job: Job) -> tuple[list[float], list[float]]:
    """Seconds that each load cost the steps beside it; likewise of as many steps halfway to the
    next load, in place of those. None where the job was disturbed."""
    if not job.is_quiet("decode"):
        return [], []
    decode = job.steps["decode"]
    windows = [window for window in load_windows(decode) if window.start >= 2 * NEAR]
    free = [at for at, step in enumerate(decode) if not step.waiting and at >= NEAR]
    extra_s = off_the_line(decode, free)
    is_free = set(free)

    def cost(window: range) -> float:
        near = [*range(window.start - NEAR, window.start), *range(window.stop, window.stop + NEAR)]
        level = [extra_s[at] for at in near if at in is_free]
        return sum(extra_s[at] for at in window) - len(window) * statistics.median(level)

    halfway = [range(one.start + APART // 2, one.stop + APART // 2) for one in windows]
    controls = [cost(one) for one in halfway if is_free.issuperset(one)]
    return [cost(window) for window in windows], controls


def interval(
    values: Sequence[float], of: Callable[[Sequence[float]], float]
) -> tuple[float, float]:
    """Where `of` lies with CERTAINTY, by drawing as many values again and again."""
    rng = random.Random(0)
    found = sorted(of(rng.choices(values, k=len(values))) for _ in range(RESAMPLES))
    cut = round((1 - CERTAINTY) / 2 * RESAMPLES)
    return found[cut], found[-1 - cut]


def summary(extras_s: Sequence[float], copy_s: float) -> dict[str, Any]:
    """In units of `copy_s`."""
    ratios = [extra_s / copy_s for extra_s in extras_s]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "count": len(ratios),
        "median": statistics.median(ratios),
        "interval": interval(ratios, statistics.median),
        "quartiles": (quartiles[0], quartiles[2]),
        "copy_s": copy_s,
    }


def describe(what: str, one: dict[str, Any]) -> str:
    low, high = one["interval"]
    return (
        f"{what:34} {one['median']:6.2f} of {one['copy_s'] * 1e3:5.2f} ms "
        f"({CERTAINTY:.0%}: {low:.2f} to {high:.2f}; quartiles {one['quartiles'][0]:.2f} to "
        f"{one['quartiles'][1]:.2f}; {one['count']} pairs)"
    )


# -- the whole -------------------------------------------------------------------------------------


def streams(config: EngineConfig, args: argparse.Namespace) -> tuple[Job, dict[str, Any]]:
    """A job on a traced engine, once all is touched, and by stream the seconds of its copies
    (`busy_s`) and those of them beside computing (`hidden_s`), mean over ranks of two jobs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        with TraceWriter(path) as trace, Engine(config, trace=trace) as engine:
            bench = Bench(engine, args.prompts, args.input_len)
            bench.moving()
            job = bench.moving()
        return job, run_figures(read_trace(path))["streams"]


def make_config(args: argparse.Namespace) -> EngineConfig:
    longest = args.input_len + max(answer_lengths(args.prompts))
    config = EngineConfig(
        model=args.model, device="cpu", dtype="bfloat16", device_memory=args.device_memory,
        max_model_len=longest, max_num_seqs=RESIDENT, max_num_batched_tokens=args.input_len,
        enable_prefix_caching=False, prefill_layout="pp2", decode_layout="tp2", reload="none",
    )  # fmt: skip
    # As much as a job fills, so that each comes to the same places.
    blocks = args.prompts * -(-longest // config.tier_block_size)
    shape = TierShape.of(open_checkpoint(config).spec, blocks, config.tier_block_size, 2)
    return replace(config, host_kv_memory=str(shape.nbytes))


@dataclass(slots=True)
class Found:
    """Seconds of each kind; of each round rates of memcpy by name and seconds of core time that
    copies took; the last jobs."""

    seconds: dict[str, list[float]]
    rates: list[dict[str, float]]
    core_s: list[float]
    plain: Job
    moving: Job


def measure(bench: Bench, seconds: float) -> Found:
    for _ in range(2):
        bench.moving()  # touches code, pools and tier
    found = Found(defaultdict(list), [], [], bench.plain(), Job())
    memcpy, end_s = Memcpy(), time.perf_counter() + seconds
    for number in itertools.count():
        if time.perf_counter() >= end_s:
            break
        before, found.moving, found.plain = found.plain, bench.moving(), bench.plain()
        found.rates.append(memcpy.rates())
        found.core_s.append(found.moving.core_s - found.plain.core_s)
        beside = found.plain if number % 2 else before
        found.seconds["stores"] += prefill_pairs(beside, found.moving)
        found.seconds["stores, control"] += prefill_pairs(before, found.plain)
        loads, control = decode_extras(found.moving)
        found.seconds["loads"] += loads
        found.seconds["loads, control"] += control
    memcpy.close()
    return found


def report(found: Found, args: argparse.Namespace) -> dict[str, Any]:
    rate = {name: statistics.median(one[name] for one in found.rates) for name in found.rates[0]}
    print("memcpy, GB/s of each core:", *(f"{name} {one / 1e9:.1f}" for name, one in rate.items()))
    sizes = {
        "stores": found.moving.store_bytes / args.prompts,
        "loads": found.moving.load_bytes / args.prompts * AT_ONCE,
    }
    told: dict[str, Any] = {"rates": rate, "bytes": sizes, "seconds": found.seconds}
    copy_s = (found.moving.store_bytes + found.moving.load_bytes) / rate["both"]
    told["core time"] = summary(found.core_s, copy_s)
    print(describe("core time of a job's copies", told["core time"]))
    for kind, phase in (("stores", "prefill"), ("loads", "decode")):
        step_s = statistics.median(step.seconds for step in found.moving.steps[phase])
        print(f"{kind}: {sizes[kind] / 1e6:.1f} MB of each rank, steps of {step_s * 1e3:.1f} ms")
        for name in (kind, f"{kind}, control"):
            if len(found.seconds[name]) < 2:
                print(f"{name}: not measured, others took more than {OTHERS:.0%} of the cores")
                continue
            told[name] = summary(found.seconds[name], sizes[kind] / rate["both"])
            print(describe(name, told[name]))
    print(f"bound: {BOUND}")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--seconds", type=float, default=200)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--input-len", type=int, default=1024)
    parser.add_argument("--device-memory", default="1GiB")
    parser.add_argument("--output-json", type=Path)
    args = parser.parse_args()
    config = make_config(args)
    with Engine(config) as engine:
        found = measure(Bench(engine, args.prompts, args.input_len), args.seconds)
    told = report(found, args)
    job, told["streams"] = streams(config, args)
    told["stalls"] = job.stalls
    print("stalls of a job:", ", ".join(f"{name} {one:.4g}" for name, one in job.stalls.items()))
    for name, one in told["streams"].items():
        print(f"stream {name}: {one['busy_s']:.3f} s, {one['hidden_s']:.3f} s of it beside steps")
    if args.output_json:
        args.output_json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
