"""`seesaw simulate`: flags in, figures, files and exit codes out, and no torch on the way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from seesaw.api.experiment_report import describe
from seesaw.api.simulation_inputs import choose_arrivals, parse_faults
from seesaw.errors import ConfigError
from seesaw.layout.parallel import ParallelLayout
from seesaw.plan.workload import Arrivals, parse_workload
from seesaw.simulate.faults import Death, Faults, SlowRank
from seesaw.trace import read_trace
from tests.api.command import run, run_json

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 64, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-5, "torch_dtype": "float16",
}  # fmt: skip
SPLIT = ["--prefill-layout", "pp4", "--decode-layout", "tp4"]


@pytest.fixture
def job(tmp_path: Path) -> list[str]:
    """Thirty requests on four L4."""
    folder = tmp_path / "llama-15b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return ["simulate", "--model", str(folder), "--machine", "4xl4", "--workload", "64:8",
            "--num-requests", "30"]  # fmt: skip


def test_the_result_for_people_and_for_machines(
    job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "result.json"
    assert run([*job, *SPLIT, "--output-json", str(target)]) == 0
    told = capsys.readouterr().out
    found = json.loads(target.read_text())
    assert found["layouts"] == {"prefill": "dp1-tp1-pp4", "decode": "dp1-tp4-pp1"}
    assert (found["model"], found["machine"], found["policy"]) == ("llama-15b", "4xl4", "seesaw")
    assert (found["num_requests"], found["input_tokens"], found["output_tokens"]) == (30, 1920, 240)
    assert found["tokens_per_s"] == pytest.approx(2160 / found["elapsed_s"])
    assert found["num_transitions"] >= 1
    assert found["kv_relay_bytes"] > found["kv_store_bytes"] == 0, "the decode pool takes all"
    assert len(found["busy_share"]) == 4
    assert "30 requests of 64:8 (closed)" in told
    assert "transitions" in told
    assert run_json([*job, *SPLIT], capsys) == found


def test_without_layouts_it_is_what_a_plan_recommends(
    job: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    one = run_json(job, capsys)
    assert run([*job, "--compare", "3"]) == 0
    table = capsys.readouterr().out
    several = run_json([*job, "--compare", "3"], capsys)["results"]
    assert len(several) == 3
    assert any(result["layouts"] == one["layouts"] for result in several)
    for result in several:
        assert ParallelLayout.parse(result["layouts"]["decode"]).short in table


def test_options_of_the_policy_and_settings_of_the_engine(
    job: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    plain = run_json([*job, *SPLIT], capsys)
    tier = ["--host-kv-memory", "64MiB", "--no-tail", "--kv-path", "tier"]
    small = run_json([*job, *SPLIT, *tier], capsys)
    assert small["memory"]["tier_blocks"] < plain["memory"]["tier_blocks"]
    assert small["num_transitions"] > plain["num_transitions"]
    patient = run_json([*job, *SPLIT, *tier, "--switch", "decode-first"], capsys)
    assert patient["elapsed_s"] > small["elapsed_s"]
    chunked = run_json([*job, "--decode-layout", "tp4", "--max-prefill-chunk", "16"], capsys)
    whole = run_json([*job, "--decode-layout", "tp4"], capsys)
    assert chunked["policy"] == "continuous"
    assert chunked["elapsed_s"] != whole["elapsed_s"]


def test_arrivals_faults_and_costs_of_the_driver_change_the_result(
    job: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    plain = run_json([*job, *SPLIT], capsys)
    for flags in (
        ["--rate", "2"], ["--arrivals", "gamma", "--rate", "2", "--cv", "3"],
        ["--arrivals", "constant", "--rate", "2"], ["--late", "1:0.5"], ["--slow", "0:0:100:3"],
        ["--death", "2:0.5", "--restart-s", "7"], ["--host-step-s", "0.2"],
        ["--no-answers-known", "--max-tokens", "50"],
    ):  # fmt: skip
        found = run_json([*job, *SPLIT, *flags], capsys)
        assert found["elapsed_s"] > plain["elapsed_s"], flags
        assert found["output_tokens"] == 240, flags
    assert run_json([*job, *SPLIT, "--rate", "2"], capsys)["arrivals"] == "2 requests/s, cv 1"
    died = run_json([*job, *SPLIT, "--death", "2:0.5"], capsys)
    assert died["faults"]["deaths"] == [[2, 0.5]]
    assert died["num_lost"] > 0


def test_the_seed_draws_lengths_and_arrivals(
    job: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    job = [*job, *SPLIT, "--workload", "azure-code", "--arrivals", "trace"]
    one, again, other = (run_json([*job, "--seed", seed], capsys) for seed in ("1", "1", "2"))
    assert one == again
    assert one["input_tokens"] != other["input_tokens"]


def test_a_trace_and_a_plot(job: list[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    trace, plot = tmp_path / "trace.json", tmp_path / "timeline.svg"
    waits = tmp_path / "latency.svg"
    files = ["--trace", str(trace), "--plot", str(plot), "--plot-latency", str(waits)]
    assert run([*job, *SPLIT, *files]) == 0
    assert "last token" in waits.read_text()
    assert {span.rank for span in read_trace(trace).spans} == {0, 1, 2, 3}
    assert plot.read_text().lstrip().startswith("<?xml")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--machine", "4xl5"], "'l5' is not known"),
        (["--workload", "sharegtp"], "sharegpt"),
        (["--arrivals", "poisson"], "--rate"),
        (["--slow", "1:2"], "RANK:BEGIN:END:TIMES"),
        (["--death", "9:1", *SPLIT], "death 9:1: expected a rank from 0 to 3"),
        (["--slow", "9:0:1:2", *SPLIT], "slow 9:0:1:2: expected a rank from 0 to 3"),
        (["--arrivals", "gamma", "--rate", "5", "--cv", "1e200"], "--cv"),
        (["--arrivals", "gamma", "--rate", "5", "--cv", "1e9", *SPLIT], "cv=1000000000.0"),
        (["--rate", "1e-300", *SPLIT], "requests[1]"),
        (["--trace", "/nowhere/at/all.json"], "--trace"),
        (["--compare", "2", "--trace", "t.json"], "--compare"),
        (["--compare", "2", *SPLIT], "--compare"),
        (["--low-mark", "0.5"], "--policy seesaw"),
        (["--prefill-layout", "pp3", "--decode-layout", "tp4"], "pp3"),
        (["--max-tokens", "4", *SPLIT], "--no-answers-known"),
        (["--restart-s", "5", *SPLIT], "--death"),
        (["--scale", "0.5", *SPLIT], "--scale"),
        (["--jobs", "1", *SPLIT], "--jobs"),
        (["--experiment", "pools", "--machine", "8xl4"], "--model"),
        (["--trace", "trace.txt"], ".json"),
        (["--plot", "timeline.gif"], ".svg"),
        (["--experiment", "throughput-l5"], "--model"),
    ],
)
def test_what_cannot_be_is_told_before_anything_runs(
    job: list[str], flags: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*job, *flags]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e308", "-1", "x"])
@pytest.mark.parametrize(
    ("flag", "form"),
    [
        ("--rate", "{}"), ("--cv", "{}"), ("--host-step-s", "{}"), ("--host-row-s", "{}"),
        ("--restart-s", "{}"), ("--scale", "{}"), ("--late", "{}:1"), ("--late", "1:{}"),
        ("--slow", "{}:0:1:2"), ("--slow", "0:{}:1:2"), ("--slow", "0:0:{}:2"),
        ("--slow", "0:0:1:{}"), ("--death", "{}:1"), ("--death", "1:{}"),
    ],
)  # fmt: skip
def test_only_finite_numbers_are_taken(
    job: list[str], flag: str, form: str, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*job, *SPLIT, f"{flag}={form.format(number)}"]) == 2
    told = capsys.readouterr().err
    assert flag in told
    assert number in told


def test_a_config_by_its_own_name_is_the_model_s_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "llama-15b.json"
    file.write_text(json.dumps(CONFIG))
    job = ["simulate", "--model", str(file), "--machine", "4xl4", "--workload", "64:8"]
    assert run_json([*job, "--num-requests", "2", *SPLIT], capsys)["model"] == "llama-15b"


def test_an_estimate_is_of_a_job_that_is_all_there(
    job: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*job, "--compare", "2"]) == 0
    assert " estimated " in capsys.readouterr().out
    assert run([*job, "--compare", "2", "--rate", "5"]) == 0
    table = capsys.readouterr().out
    assert "if all at once" in table
    assert "estimated" not in table


def test_what_does_not_fit_is_no_usage_error(
    job: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*job, "--machine", "1xt4"]) == 1
    assert "GiB" in capsys.readouterr().err
    assert run([*job, *SPLIT, "--device-memory", "1GiB"]) == 1


def test_experiments_are_named_and_unknown_ones_too(capsys: pytest.CaptureFixture[str]) -> None:
    from seesaw.simulate.experiments import EXPERIMENTS

    assert run(["simulate", "--list-experiments"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(EXPERIMENTS)
    assert "batches           Throughput over the number of requests of a job: what" in lines[8]
    assert all(len(line.split()) > 5 for line in lines)
    assert run(["simulate", "--experiment", "throughput-l5"]) == 2
    assert "throughput-l4" in capsys.readouterr().err
    assert run(["simulate"]) == 2


def test_an_experiment_for_people_and_for_machines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    target, plot = tmp_path / "figures.json", tmp_path / "plot.svg"
    command = ["simulate", "--experiment", "unequal", "--scale", "0.01"]
    assert run([*command, "--plot", str(plot), "--output-json", str(target)]) == 0
    told = capsys.readouterr().out
    found = json.loads(target.read_text())["requests_per_s"]
    (row,) = (line.split() for line in told.splitlines() if line.strip().startswith("4 T4"))
    assert [float(one) for one in row[2:]] == pytest.approx(list(found["4 T4"].values()), rel=1e-3)
    assert "{" not in told
    assert f"drawn: {plot}" in told.replace("\n", "")
    assert plot.read_text().lstrip().startswith("<?xml")
    assert run([*command, "--output-json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["requests_per_s"] == found


def test_plots_of_an_experiment_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    from seesaw.simulate import experiments

    plots: list[dict[str, Any]] = []
    ran = []

    def find(name: str) -> Any:
        return lambda options: ran.append(name) or {"gain": 2.0, "plots": plots}

    monkeypatch.setattr(experiments, "find", find)
    command = ["simulate", "--experiment", "ratio", "--plot"]
    assert run([*command, str(tmp_path / "missing" / "plot.svg")]) == 2
    assert ran == [], "the file is checked first"
    assert run([*command, str(tmp_path / "plot.svg")]) == 0
    assert "nothing to draw" in capsys.readouterr().out
    one = {"kind": "bars", "title": "t", "y_label": "y", "groups": {"a": {"b": 1.0}}}
    plots += [one, one]
    assert run([*command, str(tmp_path / "plot.svg")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plot-1.svg", "plot-2.svg"]


def test_figures_of_any_shape_are_shown() -> None:
    figures = {
        "gain": 1.23456, "seconds": {"vllm": 3.0, "small_pools": 0.5}, "bounds": [1, 2],
        "in_turn": [(0.5, "pp8"), (1.0, "tp8")],
        "series": {"pp8": [(2.0, 0.25), (1, 7.0)], "tp8": [(1, 8.0)]},
        "deep": {"poisson": {"pp8": [{"rate_per_s": 1.5}, {"rate_per_s": 2.5, "p50": 9}]}},
        "cells": [{f"field_{n}": {"best": n * 10} for n in range(12)}],
        "plots": [{"kind": "never"}],
    }  # fmt: skip
    told = [line.split() for line in describe("any", figures)]
    text = "\n".join(" ".join(line) for line in told)
    for line in (
        "gain: 1.235", "seconds: vllm: 3; small pools: 0.5", "bounds: 1, 2",
        "in turn: 0.5: pp8; 1: tp8", "1 2", "pp8 7 0.25", "tp8 8", "deep, poisson, pp8",
        "rate per s p50", "1 1.5", "2 2.5 9", "field 11 best 110",
    ):  # fmt: skip
        assert line.split() in told, f"{line!r} is not in\n{text}"
    assert "never" not in text


def test_it_loads_no_torch(job: list[str]) -> None:
    code = f"""
import sys
from seesaw.cli import main
try:
    main({[*job, *SPLIT]!r})
except SystemExit as stop:
    assert stop.code == 0, stop.code
print([name for name in ("torch", "transformers", "matplotlib") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_arrivals_by_flags() -> None:
    plain, service = parse_workload("64:8"), parse_workload("azure-conv")
    assert choose_arrivals(None, None, None, plain) is None
    assert choose_arrivals("closed", None, None, service) is None
    assert choose_arrivals(None, 2.0, None, plain) == Arrivals(2.0, 1.0)
    assert choose_arrivals("constant", 2.0, None, plain) == Arrivals(2.0, 0.0)
    assert choose_arrivals("gamma", 2.0, 5.0, plain) == Arrivals(2.0, 5.0)
    assert choose_arrivals("trace", None, None, service) == service.arrivals
    for kind, rate, cv in (
        ("closed", 1.0, None), ("poisson", None, None), ("poisson", 1.0, 2.0),
        ("gamma", 1.0, None), ("trace", 1.0, None), ("trace", None, None),
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            choose_arrivals(kind, rate, cv, plain)


def test_faults_by_flags() -> None:
    assert parse_faults(None, (), (), None) == Faults(slow=(), deaths=())
    assert parse_faults("0.5:0.01", ("1:0:2.5:3",), ("0:4",), 7.0) == Faults(
        late_share=0.5,
        late_s=0.01,
        slow=(SlowRank(1, 0.0, 2.5, 3.0),),
        deaths=(Death(0, 4.0),),
        restart_s=7.0,
    )
    for late, slow, death in (("1", (), ()), (None, ("a:1:2:3",), ()), (None, (), ("0.5:1",))):
        with pytest.raises(ConfigError):
            parse_faults(late, slow, death, None)
