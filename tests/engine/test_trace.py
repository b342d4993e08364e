"""An engine's trace: what is promised is in it, and it agrees with what the engine counts."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from seesaw.api.llm import LLM
from seesaw.plan.machine_files import builtin_cpu, local_path, write_machines
from seesaw.sampling_params import SamplingParams
from seesaw.trace import Trace, kind_of, read_trace
from tests.engine.rank_harness import BASE

SPLIT = BASE | {"prefill_layout": "pp2", "decode_layout": "tp2", "policy": "seesaw",
                "reload": "missing", "host_kv_memory": "288KiB", "max_num_seqs": 4}  # fmt: skip


def prompts_of(seed: int, count: int = 12) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(4, 300) for _ in range(rng.randint(20, 60))] for _ in range(count)]


@pytest.fixture(scope="module")
def traced(
    tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Trace, dict[str, object]]:
    """A run on two ranks in two layouts, and what the engine counted."""
    path = tmp_path_factory.mktemp("trace") / "trace.json"
    model = tiny_checkpoint("llama", num_hidden_layers=4)
    seed = random.randrange(1 << 30)
    print(f"prompts of seed {seed}")
    prompts = prompts_of(seed)
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        # As if this machine had been measured: what steps should take is in the trace, too.
        patch.setenv("SEESAW_CACHE_ROOT", str(path.parent))
        write_machines(local_path(), builtin_cpu(2, 2**30))
        llm = stack.enter_context(LLM(str(model), trace=path, **SPLIT))

        llm.generate(
            prompts, SamplingParams(max_tokens=12, ignore_eos=True, temperature=0), use_tqdm=False
        )
        llm.engine.settle()
        stats = llm.engine.stats
    counted = {
        "transitions": stats.scheduler.num_transitions,
        "stored": stats.transfers.kv_store_bytes,
        "loaded": stats.transfers.kv_load_bytes,
        "weights": dict(stats.transfers.weight_bytes_moved),
        "steps": stats.scheduler.num_steps,
        "decodes": stats.scheduler.num_decode_rows,
        "reshard_s": stats.transfers.reshard_s,
        "prompts": sum(map(len, prompts)),
        "tier": llm.engine.memory_plan.tier_blocks,
    }
    events = json.loads(path.read_text())
    assert all(event["ph"] in "MXCi" for event in events)
    return read_trace(path), counted


def test_each_rank_has_its_lanes_and_the_driver_its_own(
    traced: tuple[Trace, dict[str, object]],
) -> None:
    trace, counted = traced
    assert trace.is_whole
    assert trace.about["prefill_layout"] == "pp2"
    assert trace.about["tier_blocks"] == counted["tier"]
    assert "seesaw calibrate" in trace.about["predicted_by"]
    assert trace.about["not_predicted"] is None
    assert set(trace.labels) == {-1, 0, 1}
    lanes = {(span.rank, span.lane, kind_of(span.name)) for span in trace.spans}
    for rank in (0, 1):
        for kind in ("prefill", "decode", "to decode"):
            assert (rank, "compute", kind) in lanes
        assert {(rank, "store", "store"), (rank, "load", "load")} <= lanes
    assert (1, "compute", "wait") in lanes
    assert (0, "compute", "wait") not in lanes
    assert {(-1, "driver", "plan"), (-1, "driver", "update")} <= lanes


def test_spans_agree_with_what_was_counted(traced: tuple[Trace, dict[str, object]]) -> None:
    trace, counted = traced
    names = Counter(kind_of(one.name) for one in trace.instants)
    assert names["to decode"] + names["to prefill"] == counted["transitions"]
    assert names["step"] == counted["steps"]
    steps = [one.args for one in trace.instants if kind_of(one.name) == "step"]
    assert sum(step["decodes"] for step in steps) == counted["decodes"]
    assert sum(step["tokens"] - step["decodes"] for step in steps) == counted["prompts"]
    for kind, total in (("store", counted["stored"]), ("load", counted["loaded"])):
        moves = [one.args for one in trace.instants if kind_of(one.name) == kind]
        assert sum(move["bytes"] for move in moves) == total
        assert sum(move["predicted_bytes"] for move in moves) == total
        assert sum(args["bytes"] for args in span_args(trace, kind)) == total
    weights: Counter[str] = Counter()
    for step in steps:
        weights.update(step.get("weight_bytes", {}))
    assert weights == {source: n for source, n in counted["weights"].items() if n}  # type: ignore[attr-defined]
    assert sum(step.get("reshard_s", 0.0) for step in steps) == pytest.approx(
        counted["reshard_s"], abs=1e-5
    )
    for number, step in ((int(one.name[5:]), one.args) for one in trace.instants
                         if kind_of(one.name) == "step" and one.args["rows"]):  # fmt: skip
        name = f"{step['phase']} {number}"
        busy = [
            sum(s.end_s - s.start_s for s in trace.spans if s.rank == rank and s.name == name)
            for rank in (0, 1)
        ]
        assert max(busy) == pytest.approx(step["busy_s"], abs=1e-5)


def test_steps_and_copies_say_what_was_predicted_of_them(
    traced: tuple[Trace, dict[str, object]],
) -> None:
    trace, _ = traced
    for one in trace.instants:
        kind, args = kind_of(one.name), one.args
        if kind in ("store", "load") or (kind == "step" and args["rows"]):
            assert args["predicted_s"] > 0, one
        if kind == "step" and args["rows"]:
            # What bounds the slowest stage adds up to it.
            assert sum(args["bound_s"].values()) == pytest.approx(args["predicted_s"], rel=1e-2)
        if "predicted_weight_bytes" in args:
            assert args["predicted_reshard_s"] > 0
    # Ranks report what they fetched with the step in which it was there.
    sums = [
        sum(sum(one.args.get(name, {}).values()) for one in trace.instants)
        for name in ("predicted_weight_bytes", "weight_bytes")
    ]
    assert sums[0] == sums[1] > 0
    for span, args in zip(trace.spans, trace.span_args, strict=True):
        if span.lane == "compute" and kind_of(span.name) in ("prefill", "decode"):
            assert args["predicted_s"] > 0, span
            assert 0 < args["rows"] <= args["tokens"], span


def span_args(trace: Trace, kind: str) -> list[dict[str, object]]:
    return [args for span, args in zip(trace.spans, trace.span_args, strict=True)
            if kind_of(span.name) == kind]  # fmt: skip


def test_a_lane_does_one_thing_at_a_time(traced: tuple[Trace, dict[str, object]]) -> None:
    trace, _ = traced
    for rank, lane in {(s.rank, s.lane) for s in trace.spans if s.lane in ("compute", "driver")}:
        at_s = 0.0
        for span in (s for s in trace.spans if (s.rank, s.lane) == (rank, lane)):
            assert span.start_s >= at_s - 1e-6, span
            at_s = span.end_s


def test_counters_end_empty_and_never_pass_what_there_is(
    traced: tuple[Trace, dict[str, object]],
) -> None:
    trace, _ = traced
    about = trace.about
    for one in trace.counters:
        if one.name == "decode pool":
            assert one.values["held"] + one.values["reserved"] <= about["decode_blocks"]
        if one.name == "tier":
            assert one.values["held"] <= about["tier_blocks"]
    last = {one.name: one.values for one in trace.counters}
    assert sum(last["requests"].values()) == 0
    assert last["tier"]["held"] == 0
    peak = max(one.values["held"] for one in trace.counters if one.name == "tier")
    assert peak > 0


def test_a_killed_job_leaves_a_trace_that_can_be_read(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "trace.json"
    code = f"""
from seesaw import LLM, SamplingParams
with LLM({str(tiny_checkpoint("llama"))!r}, trace={str(path)!r}, dtype="float32",
         device_memory="256MiB") as llm:
    while True:
        llm.generate([[5, 6, 7]] * 4, SamplingParams(max_tokens=20), use_tqdm=False)
"""
    job = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    while not path.exists() or path.stat().st_size < 100_000:
        assert job.poll() is None, "the job ended"
        assert time.monotonic() < deadline, "nothing was written"
        time.sleep(0.05)
    job.send_signal(signal.SIGKILL)
    job.wait()
    trace = read_trace(path)
    assert not trace.is_whole
    assert len(trace.spans) > 100
    assert trace.about["num_ranks"] == 1
