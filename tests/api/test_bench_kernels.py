"""`seesaw bench kernels` on the CPU: what is timed, what is compared, what is said; never how long
anything takes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from seesaw import cli
from seesaw.api import bench_kernels, bench_kernels_report
from seesaw.api.bench_kernels import PROVIDERS, Bencher, Findings, Job, Row, choose, goals, row
from seesaw.api.bench_peers import PEERS
from seesaw.api.commands import bench as command
from seesaw.errors import UnsupportedError
from seesaw.measure.limits import Limits
from seesaw.measure.timer import Timing
from seesaw.ops import OPS
from seesaw.ops.registry import Bench
from seesaw.ops.triton_backend import plain_torch
from tests.ops.test_registry import assert_equal

LIMITS = Limits(
    read_bytes_per_s=1e9, bfloat16_flops=1e12, float32_flops=5e11, isa="avx2", num_threads=1
)
CPU = torch.device("cpu")
SEED = random.randrange(2**31)


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "kernels", "--device", "cpu", *args])
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_kernels, "CPU_BATCH_S", 1e-4)
    monkeypatch.setattr(bench_kernels, "CPU_BATCHES", 2)


@pytest.mark.usefixtures("short")
def test_what_there_is_no_time_for_is_listed() -> None:
    jobs = choose(["rms_norm"], None, CPU, quick=True)
    found = bench_kernels.run(jobs, ["seesaw"], Bencher(CPU, quick=True), lambda _: None, 0.0)
    assert [one[1] for one in found.skipped] == [job.name for job in jobs]
    assert not found.rows
    assert not found.failed


def test_figures_table_and_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "figures.json"
    written = ("--output-json", str(target), "--plot", str(tmp_path / "plots"))
    assert run("--op", "rms_norm", "--op", "highest", "--quick", *written) == 0
    found = json.loads(target.read_text())
    assert {one["op"] for one in found["rows"]} == {"rms_norm", "highest"}
    assert len(found["rows"]) == 2 * bench_kernels.QUICK
    assert found["device"] == "cpu"
    assert found["environment"]["libraries"]["torch"]
    for one in found["rows"]:
        assert one["provider"] == "seesaw"
        assert 0 < one["best_s"] <= one["p20_s"] <= one["p50_s"] <= one["p80_s"]
        assert one["gb_per_s"] == pytest.approx(one["num_bytes"] / one["p50_s"] / 1e9)
        if found["limits"]:
            assert one["of_limit"] == max(one["of_memory"], one["of_matmul"])
    out = capsys.readouterr().out
    assert "-- rms_norm" in out
    if found["limits"]:
        assert (tmp_path / "plots" / "rms_norm.png").stat().st_size > 1000


@pytest.mark.usefixtures("short")
def test_an_op_that_raises_is_named_and_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(**_: object) -> None:
        raise RuntimeError("planted")

    bad = replace(OPS["rms_norm"], function=broken)
    monkeypatch.setattr(bench_kernels, "OPS", {"rms_norm": bad, "highest": OPS["highest"]})
    assert run("--quick") == 1
    out = capsys.readouterr().out
    assert "FAILED: rms_norm" in out
    assert "planted" in out
    assert "-- highest" in out


def test_what_comes_behind_a_lost_gpu_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it would fail with the same words."""
    calls = []

    def broken(**_: object) -> None:
        calls.append("broken")
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    bad = replace(OPS["rms_norm"], function=broken)
    monkeypatch.setattr(bench_kernels, "OPS", {"rms_norm": bad, "highest": OPS["highest"]})
    monkeypatch.setattr(bench_kernels, "is_lost", lambda: bool(calls))
    jobs = bench_kernels.choose((), None, torch.device("cpu"))
    bencher = bench_kernels.Bencher(torch.device("cpu"), quick=True)
    found = bench_kernels.run(jobs, ["seesaw"], bencher, print)
    assert [(op, case) for op, case, *_ in found.failed] == [("rms_norm", jobs[0].name)]
    assert found.rows == []
    assert [(op, case) for op, case, *_ in found.skipped] == [
        (job.op.name, job.name) for job in jobs[1:]
    ]
    assert {why for *_, why in found.skipped} == {f"the GPU has failed in rms_norm, {jobs[0].name}"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--op", "rms_nrm"), "Did you mean 'rms_norm'?"),
        (("--providers", "seesaw,flashinfr"), "Did you mean 'flashinfer'?"),
        (("--providers", ","), "expected some of"),
        (("--op", "sample", "--dtype", "bfloat16"), "no shape to time on cpu"),
        (("--output-json", "/nowhere/x.json"), "does not exist"),
    ],
)
def test_refusals(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) != 0
    assert told in capsys.readouterr().err


def test_the_flag_names_every_provider() -> None:
    (flag,) = (one for one in command.kernels.params if one.name == "providers")
    assert flag.default == ",".join(PROVIDERS)
    assert set(bench_kernels.LEAST_SPEED) < set(PROVIDERS)
    assert all(set(peers) < set(PROVIDERS) for peers in PEERS.values())


def test_every_op_is_timed_somewhere_at_shapes_that_it_computes() -> None:
    for op in OPS.values():
        assert op.bench, f"{op.name}: no shape to time"
        for name, bench in op.bench.items():
            assert bench.dtype in op.tolerance, f"{op.name}, {name}"
            cost = op.cost(bench.case, bench.dtype)
            assert cost.num_bytes > 0
            assert set(bench.devices) <= {"cpu", "cuda"}
            assert (bench.link is None) == (bench.link_bytes == 0), f"{op.name}, {name}"


def test_dtype_replaces_that_of_the_shapes() -> None:
    assert {job.bench.dtype for job in choose(["rms_norm"], None, CPU)} == {torch.bfloat16}
    assert {job.bench.dtype for job in choose(["rms_norm"], "float16", CPU)} == {torch.float16}
    assert len(choose(["rms_norm"], None, CPU, quick=True)) == bench_kernels.QUICK


# -- figures ---------------------------------------------------------------------------------------


def job(**changes: Any) -> Job:
    op = replace(OPS["rms_norm"], cost=lambda case, dtype: type(COST)(4_000_000, 10**9))
    return Job(op, "x", Bench(case={}, **changes))


COST = OPS["rms_norm"].cost(OPS["rms_norm"].cases[0], torch.float32)
TIMING = Timing((0.01, 0.02, 0.04), calls=3)


def test_shares_of_limits() -> None:
    found = row(job(aim=0.5), "seesaw", TIMING, LIMITS)
    assert (found.p50_s, found.best_s) == (0.02, 0.01)
    assert found.of_memory == pytest.approx(0.2)
    assert found.of_matmul == pytest.approx(0.05)
    assert found.of_limit == found.of_memory
    assert (found.gb_per_s, found.tflop_per_s) == pytest.approx((0.2, 0.05))
    assert bench_kernels_report.bound(found) == "memory"
    assert row(job(), "seesaw", TIMING, None).of_limit is None
    assert row(job(aim=0.5), "torch", TIMING, LIMITS).aim is None
    float32 = row(job(dtype=torch.float32), "seesaw", TIMING, LIMITS)
    assert float32.of_matmul == pytest.approx(0.1)


def test_the_bus_is_the_limit_of_what_crosses_it() -> None:
    class Bus(Limits):
        def rate(self, what: str, dtype: str) -> float | None:
            return 1e8 if what == "to_host" else super().rate(what, dtype)

    bus = Bus(read_bytes_per_s=1e9, bfloat16_flops=1e12, float32_flops=1e12, isa="", num_threads=1)
    found = row(job(link="to_host", link_bytes=1_000_000), "seesaw", TIMING, bus)
    assert found.of_limit == pytest.approx(0.5)
    assert bench_kernels_report.bound(found) == "to_host"


def rows(**seconds: float) -> list[Row]:
    base = row(job(aim=0.25), "seesaw", TIMING, LIMITS)
    return [
        replace(base, op="paged_decode", provider=name, p50_s=value)
        for name, value in seconds.items()
    ]


def test_goals_beside_limits_and_peers() -> None:
    found = {one.what: one for one in goals(rows(seesaw=1.0, torch=1.1, flex=0.9, flashinfer=0.96))}
    assert {name: one.met for name, one in found.items()} == {
        "of the limit": False,
        "speed over torch": True,
        "speed over flex": False,
        "speed over flashinfer": True,
    }
    lines = list(bench_kernels_report.goal_table(list(found.values())))
    assert lines[0] == "goals: 2 of 4 met"
    assert sum("MISSED" in line for line in lines) == 2
    others = [replace(one, op="rms_norm") for one in rows(seesaw=1.0, torch=0.1)]
    assert [one.what for one in goals(others)] == ["of the limit"]


# -- peers -----------------------------------------------------------------------------------------

CASES = [
    pytest.param(name, index, id=f"{name}-{index}")
    for name in PEERS
    if name in OPS
    for index in range(len(OPS[name].cases))
]


@pytest.mark.parametrize("provider", ["torch", "flex"])
@pytest.mark.parametrize(("name", "index"), CASES)
def test_peers_compute_the_same(name: str, index: int, provider: str) -> None:
    """Where they compute it at all: rows of one length, and what each has of windows and caps."""
    op = OPS[name]
    generator = torch.Generator().manual_seed(SEED)
    inputs = op.make_inputs(generator, op.cases[index], torch.float32)
    with plain_torch():
        ours = op.function(**inputs)
    ours = ours[0] if isinstance(ours, tuple) else ours
    if ours.numel() == 0:
        pytest.skip("nothing to compute")
    try:
        theirs = PEERS[name][provider](inputs)()
    except UnsupportedError as error:
        pytest.skip(str(error))
    assert_equal(theirs, ours, op.tolerance[torch.float32])


@pytest.mark.usefixtures("short")
def test_a_peer_that_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(inputs: Any) -> Callable[[], object]:
        return lambda: torch.zeros_like(inputs["q_THD"])

    monkeypatch.setitem(bench_kernels.PEERS, "ragged_prefill", {"torch": wrong})  # type: ignore[arg-type]
    op = OPS["ragged_prefill"]
    bench = Bench(case=op.cases[4], dtype=torch.float32)
    findings = Findings()
    found = Bencher(CPU, quick=True).time(Job(op, "x", bench), ["seesaw", "torch"], findings)
    assert set(found) == {"seesaw"}
    ((*where, why),) = findings.failed
    assert where == ["ragged_prefill", "x", "torch"]
    assert "not close" in why


@pytest.mark.usefixtures("short")
def test_cold_inputs_take_turns() -> None:
    seen: list[int] = []

    def function(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.data_ptr())
        return x

    op = replace(
        OPS["rms_norm"],
        function=function,
        make_inputs=lambda generator, case, dtype: {"x": torch.zeros(4)},
        cost=lambda case, dtype: type(COST)(2**30, 1),
        mutates=("x",),
    )
    bencher = Bencher(CPU, quick=True)
    bencher.time(Job(op, "x", Bench(case={})), ["seesaw"], Findings())
    assert len(set(seen)) == 1
    small = replace(op, cost=lambda case, dtype: type(COST)(bencher._cache_bytes, 1))
    seen.clear()
    bencher.time(Job(small, "x", Bench(case={}, cold=True)), ["seesaw"], Findings())
    assert len(set(seen)) == bench_kernels.CACHES_IN_BUFFER
