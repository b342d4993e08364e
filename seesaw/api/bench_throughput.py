"""Throughput of one offline batch of random tokens: how it is drawn, run and checked."""

from __future__ import annotations

import copy
import random
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from seesaw.api.bench_roofline import StepRecorder, roofline
from seesaw.api.environment import environment
from seesaw.api.live import shown
from seesaw.api.llm import LLM
from seesaw.engine.engine import Engine
from seesaw.engine.stats import EngineStats, MovedBytes
from seesaw.errors import ConfigError, SeesawError
from seesaw.measure.limits import LimitsProbe
from seesaw.plan.weight_bytes import dtype_of
from seesaw.sampling_params import SamplingParams
from seesaw.sizes import format_bytes

NUM_WARM_UP_PROMPTS = 4


@dataclass(frozen=True, kw_only=True)
class Workload:
    """`num_prompts` prompts of `input_len` random tokens, each answered with `output_len`."""

    num_prompts: int
    input_len: int
    output_len: int

    @property
    def sampling(self) -> SamplingParams:
        return SamplingParams(temperature=0, ignore_eos=True, max_tokens=self.output_len)

    @property
    def expected(self) -> dict[str, Any]:
        """The job as settings of an engine have it, which chooses layouts for it."""
        return {
            "expected_lengths": ((self.input_len, self.output_len),),
            "expected_requests": self.num_prompts,
        }

    def draw(self, rng: random.Random, vocab_size: int) -> list[list[int]]:
        """Prompts of uniformly random tokens."""
        return [
            [rng.randrange(vocab_size) for _ in range(self.input_len)]
            for _ in range(self.num_prompts)
        ]


def measure(
    settings: Mapping[str, Any],
    workload: Workload,
    repeats: int,
    probe: LimitsProbe | None = None,
    trace: str | None = None,
) -> dict[str, Any]:
    """Load the model once and run the workload `repeats` times, with new tokens each time. With
    `probe` the best run's steps are set against the machine's limits: "roofline". `trace`: file of
    what devices do when, in all runs and before them."""
    start = time.perf_counter()
    with LLM(**settings, **workload.expected, trace=trace) as llm:
        start_s = time.perf_counter() - start
        _check_fits(workload, llm.engine.max_model_len)
        rng = random.Random(settings["seed"])
        _warm_up(llm, workload, rng)
        runs = [_measured_run(llm, workload, rng, probe) for _ in range(repeats)]
        max_model_len = llm.engine.max_model_len
        layouts = llm.engine.layouts
    elapsed_s, more = min(runs, key=lambda run: run[0])
    num_output = workload.num_prompts * workload.output_len
    num_total = num_output + workload.num_prompts * workload.input_len
    return {
        "elapsed_s": elapsed_s,
        "elapsed_s_all": [run[0] for run in runs],
        "total_tokens_per_s": num_total / elapsed_s,
        "output_tokens_per_s": num_output / elapsed_s,
        "layouts": {"prefill": str(layouts.prefill), "decode": str(layouts.decode)},
        **more,
        "start_s": start_s,
        "peak_rss_bytes": peak_rss_bytes(),
        "workload": {**asdict(workload), "repeats": repeats},
        "settings": dict(settings),
        "max_model_len": max_model_len,
        "environment": environment(),
    }


def movement_figures(before: EngineStats, after: EngineStats) -> dict[str, Any]:
    """What happened between two looks at an engine: transitions, bytes moved and predicted,
    seconds by phase. `tier_peak_bytes` is of the engine's life, as a peak has no difference.
    """
    old, new = before.transfers, after.transfers
    decode_steps = after.scheduler.num_decode_steps - before.scheduler.num_decode_steps
    decode_rows = after.scheduler.num_decode_rows - before.scheduler.num_decode_rows
    reshard_s = new.reshard_s - old.reshard_s
    return {
        "phase_s": {
            "prefill": new.prefill_s - old.prefill_s,
            "decode": new.decode_s - old.decode_s,
            "reshard": reshard_s,
        },
        "num_transitions": after.scheduler.num_transitions - before.scheduler.num_transitions,
        "transition_visible_s": new.stalls.visible_s - old.stalls.visible_s,
        "stalls": {
            name: value - getattr(old.stalls, name)
            for name, value in asdict(new.stalls).items()
            if name != "visible_s"
        },
        **_moved(old, new),
        "predicted": _moved(old.predicted, new.predicted),
        "tier_peak_bytes": new.tier_peak_bytes,
        "tier_pieces": new.tier_pieces - old.tier_pieces,
        "mean_decode_batch": decode_rows / decode_steps if decode_steps else 0.0,
    }


def _moved(old: MovedBytes, new: MovedBytes) -> dict[str, Any]:
    return {
        "kv_store_bytes": new.kv_store_bytes - old.kv_store_bytes,
        "kv_load_bytes": new.kv_load_bytes - old.kv_load_bytes,
        "kv_relay_bytes": new.kv_relay_bytes - old.kv_relay_bytes,
        "kv_peer_bytes": new.kv_peer_bytes - old.kv_peer_bytes,
        "weight_bytes_moved": {
            source: nbytes - old.weight_bytes_moved[source]
            for source, nbytes in new.weight_bytes_moved.items()
        },
    }


def describe_movement(figures: Mapping[str, Any]) -> str | None:
    """One line for people; None where nothing but tokens moved."""
    relayed = figures["kv_relay_bytes"]
    if not figures["num_transitions"] and not figures["kv_store_bytes"] and not relayed:
        return None
    layouts, weights = figures["layouts"], figures["weight_bytes_moved"]
    moved = [
        f"{format_bytes(nbytes)} ({source})"
        for source, nbytes in weights.items()
        if nbytes and source != "resident"
    ]
    return (
        f"prefill in {layouts['prefill']}, decode in {layouts['decode']}: "
        f"{figures['num_transitions']} transitions, {figures['transition_visible_s']:.2f} s "
        f"visible; KV stored {format_bytes(figures['kv_store_bytes'])}, "
        f"loaded {format_bytes(figures['kv_load_bytes'])}"
        + (f", from pool to pool {format_bytes(relayed)}" if relayed else "")
        + "; "
        f"weights moved {' + '.join(moved) or 'none'}; "
        f"{figures['mean_decode_batch']:.1f} rows per decode step"
    )


def _check_fits(workload: Workload, max_model_len: int) -> None:
    if workload.input_len + workload.output_len > max_model_len:
        raise ConfigError(
            f"input_len={workload.input_len} and output_len={workload.output_len}: together they "
            f"are more than max_model_len={max_model_len}. Lower them, or raise max_model_len."
        )


def _warm_up(llm: LLM, workload: Workload, rng: random.Random) -> None:
    few = Workload(
        num_prompts=min(NUM_WARM_UP_PROMPTS, workload.num_prompts),
        input_len=workload.input_len,
        output_len=workload.output_len,
    )
    _run(llm, few, rng)


def _measured_run(
    llm: LLM, workload: Workload, rng: random.Random, probe: LimitsProbe | None
) -> tuple[float, dict[str, Any]]:
    engine = llm.engine
    before = copy.deepcopy(engine.stats)
    engine.take_profile()  # of what ran before
    if probe is None:
        elapsed_s = _run(llm, workload, rng)
        return elapsed_s, _figures(engine, before)
    dtype = dtype_of(engine.config, engine.spec)
    recorder = StepRecorder.of(engine.spec, dtype)
    engine.observe_steps(recorder)
    elapsed_s = _run(llm, workload, rng)
    engine.observe_steps(None)
    more = _figures(engine, before)
    return elapsed_s, {**more, "roofline": roofline(recorder.points, probe.measure(), dtype)}


def _figures(engine: Engine, before: EngineStats) -> dict[str, Any]:
    """What happened since `before`; with `profile` also where the time of steps went."""
    profile = engine.take_profile().figures()
    return movement_figures(before, engine.stats) | ({"profile": profile} if profile else {})


def _run(llm: LLM, workload: Workload, rng: random.Random) -> float:
    """Seconds of one run, detokenising included. Raises where an answer is not as asked for."""
    prompts = workload.draw(rng, llm.engine.vocab_size)
    start = time.perf_counter()
    with shown(llm.engine, workload.num_prompts, workload.output_len):
        outputs = llm.generate(prompts, workload.sampling, use_tqdm=False)
        elapsed_s = time.perf_counter() - start
    llm.engine.settle()  # bytes are compared with what was predicted
    lengths = {len(output.outputs[0].token_ids) for output in outputs}
    if len(outputs) != workload.num_prompts or lengths != {workload.output_len}:
        raise SeesawError(
            f"bench: {len(outputs)} answers of {sorted(lengths)} tokens, expected "
            f"{workload.num_prompts} of {workload.output_len}: the figure would be wrong."
        )
    return elapsed_s


def peak_rss_bytes() -> int:
    """Most resident memory of this process so far. Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
