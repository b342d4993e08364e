"""`seesaw bench serve` and `bench policies`, simulated and measured, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seesaw.api.serving.system import Served, Simulated
from seesaw.trace import read_trace
from tests.api.command import run, run_json

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5, "torch_dtype": "float16",
}  # fmt: skip
SIZES = ["--device-memory", "256MiB", "--dtype", "float32", "--device", "cpu"]


# -- simulated -------------------------------------------------------------------------------------


@pytest.fixture
def simulated(tmp_path: Path) -> list[str]:
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return ["--model", str(folder), "--machine", "1xl4", "--decode-layout", "tp1", "--workload",
            "200:40", "--num-requests", "40"]  # fmt: skip


def test_a_simulated_run_is_that_of_simulate(
    simulated: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """And says more of it: what is between tokens."""
    found = run_json(["bench", "serve", "--simulate", *simulated, "--qps", "50", "--slo-tbt-s",
                      "9"], capsys)  # fmt: skip
    (one,) = found["runs"]
    same = run_json(["simulate", *simulated, "--rate", "50"], capsys)
    assert (one["policy"], same["policy"]) == ("auto", "continuous")
    latency = dict(one["latency_s"])
    between = latency.pop("between_tokens")
    assert latency == same["latency_s"]
    assert one["elapsed_s"] == same["elapsed_s"]
    assert one["tokens_per_s"] == pytest.approx(same["tokens_per_s"])
    assert one["scheduler"] == same["scheduler"]
    assert between["mean"] == pytest.approx(latency["per_token"]["mean"])
    assert between["max"] >= between["p99"] >= between["p50"] > 0
    assert (one["num_met"], one["num_stalls"], one["num_requests"]) == (40, 0, 40)
    assert one["goodput_per_s"] == pytest.approx(40 / one["elapsed_s"])
    assert found["simulated"]


def test_policies_meet_the_same_requests(
    simulated: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    plot, target = tmp_path / "frontier.svg", tmp_path / "figures.json"
    # No answer goes on while prefill-first computes a prompt of several thousand tokens.
    args = ["bench", "policies", "--simulate", *simulated, "--workload", "4000:60", "--qps",
            "0.1,0.3", "--max-num-batched-tokens", "8192", "--slo-tbt-s", "0.3", "--policies",
            "prefill-first,sarathi-serve --token-budget 256"]  # fmt: skip
    assert run([*args, "--plot", str(plot), "--output-json", str(target)]) == 0
    told = capsys.readouterr().out
    found = json.loads(target.read_text())
    whole, chunked = "prefill-first", "sarathi-serve --token-budget 256"
    by = {(one["policy"], one["rate_per_s"]): one for one in found["runs"]}
    assert set(by) == {(name, rate) for name in (whole, chunked) for rate in (0.1, 0.3)}
    for rate in (0.1, 0.3):
        assert by[whole, rate]["span_s"] == by[chunked, rate]["span_s"]
        assert by[whole, rate]["num_stalls"] > by[chunked, rate]["num_stalls"]
        assert by[whole, rate]["counts"]["num_stalls"] > 0
        assert by[chunked, rate]["counts"]["num_stalls"] == 0
        assert by[chunked, rate]["counts"]["most_tokens"] <= 256
        gaps = [by[name, rate]["latency_s"]["between_tokens"] for name in (whole, chunked)]
        assert gaps[0]["max"] > gaps[1]["max"]
    assert [plot["x_label"] for plot in found["plots"]] == ["TTFT p50 (s)"] + [
        "requests per second"
    ] * 2
    frontier = found["plots"][0]["series"][chunked]
    assert [x for x, _ in frontier] == [
        by[chunked, rate]["latency_s"]["first_token"]["p50"] for rate in (0.1, 0.3)
    ]
    for at in (1, 2, 3):
        assert (tmp_path / f"frontier-{at}.svg").read_text().startswith("<?xml")
    rows = [line for line in told.splitlines() if line.startswith((whole, chunked))]
    assert len(rows) == 2 * 4, "latencies, and what steps asked of the model"
    assert "kept: TBT 0.3 s" in told


@pytest.mark.parametrize("finds_capacity", [False, True])
def test_what_was_finished_before_an_interruption_is_told(
    simulated: list[str],
    finds_capacity: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    serve, finished = Simulated.serve, []

    def interrupted(system: Simulated, *args: Any) -> Served:
        if len(finished) == 2:
            raise KeyboardInterrupt
        finished.append(system.label)
        return serve(system, *args)

    monkeypatch.setattr(Simulated, "serve", interrupted)
    target = tmp_path / "figures.json"
    args = ["bench", "policies", "--simulate", *simulated, "--policies", "continuous,sarathi-serve",
            "--qps", "4" if finds_capacity else "4,8,16", "--output-json", str(target),
            *(["--capacity", "--slo-tbt-s", "0.3"] if finds_capacity else [])]  # fmt: skip
    assert run(args) == 130
    found = json.loads(target.read_text())
    assert found["interrupted"]
    assert [one["policy"] for one in found["runs"]] == finished == ["continuous"] * 2
    assert "what was finished until then" in capsys.readouterr().out
    target.unlink()
    monkeypatch.setattr(Simulated, "serve", _interrupt)
    assert run(args) == 130
    assert not target.exists()


def _interrupt(*_: Any) -> Served:
    raise KeyboardInterrupt


def test_the_capacity_of_a_simulated_system_and_its_resumption(
    simulated: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = tmp_path / "runs.jsonl"
    args = ["bench", "serve", "--simulate", *simulated, "--workload", "2000:50", "--capacity",
            "--slo-tbt-s", "0.3", "--qps", "4", "--journal", str(journal)]  # fmt: skip
    found = run_json(args, capsys)
    (capacity,) = found["capacity"]
    by = {one["rate_per_s"]: one for one in found["runs"]}
    assert capacity["trials"][0]["rate_per_s"] == 4.0
    assert len(by) == len(capacity["trials"])
    below, above = capacity["rate_per_s"], capacity["above_per_s"]
    assert 0 < below < above <= 1.05 * below
    assert by[below]["latency_s"]["between_tokens"]["p99"] <= 0.3
    assert by[below]["latency_s"]["delay"]["p50"] <= 2.0
    assert (
        by[above]["latency_s"]["between_tokens"]["p99"] > 0.3
        or by[above]["latency_s"]["delay"]["p50"] > 2.0
    )
    lines = journal.read_text().splitlines()
    assert len(lines) == 1 + len(by)
    # As if it had been cut off after two runs, the figures of the first are marked.
    marked = json.loads(lines[1])
    marked["requests_per_s"] += 1000
    journal.write_text("\n".join([lines[0], json.dumps(marked), lines[2]]) + "\n")
    again = run_json(args, capsys)
    assert again["capacity"] == found["capacity"]
    assert again["runs"][0]["requests_per_s"] == found["runs"][0]["requests_per_s"] + 1000
    assert again["runs"][1:] == found["runs"][1:]


def test_a_promise_that_no_rate_can_keep_ends_the_search(
    simulated: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Not sixteen halvings later: runs at such rates would take days on an engine."""
    found = run_json(["bench", "serve", "--simulate", *simulated, "--capacity", "--slo-tbt-s",
                      "1e-6"], capsys)  # fmt: skip
    (capacity,) = found["capacity"]
    assert capacity["rate_per_s"] == 0.0
    assert [one["came_alone"] for one in capacity["trials"]][-2:] == [False, True]
    last = found["runs"][-1]
    assert last["latency_s"]["end_to_end"]["mean"] * 40 / last["elapsed_s"] < 0.1


@pytest.mark.parametrize("layout", [[], ["--decode-layout", "tp1"]])
def test_requests_are_short_enough_before_anything_is_planned(
    layout: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With and without a plan; drawn again, such requests are no obstacle to either."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"max_position_embeddings": 2000}))
    args = ["bench", "serve", "--simulate", "--model", str(tmp_path), "--machine", "1xa100-80-sxm",
            *layout, "--workload", "sharegpt-8k", "--num-requests", "20"]  # fmt: skip
    assert run(args) == 2
    assert "--longest 2000" in capsys.readouterr().err
    found = run_json([*args, "--longest", "2000"], capsys)
    assert found["runs"][0]["input_tokens"] + found["runs"][0]["output_tokens"] <= 20 * 2000


def test_what_steps_asked_of_the_model_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Experts that are read, and stages that stand still, with the other counts; none where there
    are no experts."""
    sparse = CONFIG | {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 16,
        "num_experts_per_tok": 2, "moe_intermediate_size": 768, "head_dim": 128,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(sparse))
    target = tmp_path / "figures.json"
    args = ["bench", "policies", "--simulate", "--model", str(tmp_path), "--machine", "2xl4",
            "--decode-layout", "pp2", "--workload", "1500:40", "--num-requests", "30", "--qps", "4",
            "--policies", "sarathi-serve,layered-prefill"]  # fmt: skip
    assert run([*args, "--output-json", str(target)]) == 0
    told = capsys.readouterr().out
    chunks, layers = json.loads(target.read_text())["runs"]
    assert chunks["expert_loads"] > layers["expert_loads"] > 0
    assert chunks["bubble_s"]["p50"] > 0
    again = [one["counts"]["prompt_key_layers"] / one["counts"]["prompt_row_layers"]
             for one in (chunks, layers)]  # fmt: skip
    assert again[0] > 1.5 > again[1] >= 1.0
    for told_of in ("experts read", "bubble p50", f"{again[0]:.2f}x", "sarathi-serve"):
        assert told_of in told


# -- measured --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Callable[..., Path]) -> str:
    return str(tiny_checkpoint("llama"))


def test_an_engine_under_load(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "figures.json"
    args = ["bench", "serve", "--model", model, *SIZES, "--workload", "20:6", "--num-requests",
            "8", "--qps", "40,400", "--slo-ttft-s", "100", "--slo-tbt-s", "100", "--trace",
            str(tmp_path / "trace.json")]  # fmt: skip
    assert run([*args, "--output-json", str(target)]) == 0
    found = json.loads(target.read_text())
    assert found["environment"]["libraries"]["torch"]
    assert found["settings"]["enable_prefix_caching"] is False
    assert not found["simulated"]
    for one, rate in zip(found["runs"], (40.0, 400.0), strict=True):
        assert (one["rate_per_s"], one["num_requests"], one["num_met"]) == (rate, 8, 8)
        assert (one["input_tokens"], one["output_tokens"], one["num_stalls"]) == (160, 48, 0)
        assert 0 < one["span_s"] < one["elapsed_s"]
        assert one["goodput_per_s"] == pytest.approx(8 / one["elapsed_s"])
        latency = one["latency_s"]
        assert 0 <= latency["delay"]["p50"] < latency["first_token"]["p50"]
        assert latency["first_token"]["max"] < latency["end_to_end"]["max"] <= one["elapsed_s"]
        assert one["scheduler"]["num_decode_rows"] == 8 * 5
        assert one["layouts"] == {"prefill": "dp1-tp1-pp1", "decode": "dp1-tp1-pp1"}
    assert read_trace(tmp_path / "trace.json").spans
    told = capsys.readouterr().out
    assert "8 requests of 20:6 (poisson), measured" in told
    assert "kept: TTFT 100 s, TBT 100 s" in told
    assert "auto = continuous" in told
    assert all(one["policy_run"] == "continuous" for one in found["runs"])
    assert all(one["expert_loads"] is None for one in found["runs"]), "not counted, not 0"


def test_engines_with_other_policies_give_the_same_answers(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["bench", "policies", "--model", model, *SIZES, "--workload", "24:5", "--num-requests",
            "6", "--qps", "100", "--policies", "continuous,continuous --max-prefill-chunk 7,"
            "prefill-first,sarathi,sarathi-serve,layered-prefill,nexus,seesaw",
            "--cpu-threads", "2"]  # fmt: skip
    found = run_json(args, capsys)
    assert [one["policy"] for one in found["runs"]] == [
        "continuous", "continuous --max-prefill-chunk 7", "prefill-first", "sarathi",
        "sarathi-serve", "layered-prefill", "nexus", "seesaw",
    ]  # fmt: skip
    assert [one["same_answers"] for one in found["runs"]] == [None] + 7 * [6]
    assert len({one["span_s"] for one in found["runs"]}) == 1
    steps = [one["counts"]["num_steps"] for one in found["runs"]]
    assert steps[1] > steps[0], "chunks of 7 take more steps"
    for one in found["runs"]:
        assert one["counts"]["num_decode_rows"] == 6 * 4


def test_prompts_of_a_batch_file_are_counted_by_the_tokenizer_of_a_gguf_file(
    smollm2_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {"prompt": "One, two, three,", "max_tokens": 5}
    row = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
    (tmp_path / "in.jsonl").write_text(json.dumps(row))
    found = run_json(["bench", "serve", "--model", str(smollm2_gguf), "--device-memory", "1GiB",
                      "--max-model-len", "64", "--workload", str(tmp_path / "in.jsonl"),
                      "--num-requests", "2", "--qps", "100"], capsys)  # fmt: skip
    (one,) = found["runs"]
    assert (one["input_tokens"], one["output_tokens"]) == (2 * 6, 2 * 5)


def test_requests_longer_than_the_model_takes_are_refused(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["bench", "serve", "--model", model, *SIZES, "--workload", "500:20", "--num-requests",
            "2"]  # fmt: skip
    assert run(args) == 2
    assert "--longest 512" in capsys.readouterr().err


# -- flags -----------------------------------------------------------------------------------------

POLICIES = ["--policies", "continuous"]


@pytest.mark.parametrize(
    ("command", "flags", "named"),
    [
        ("policies", [], "--policies"),
        ("policies", ["--policies", "continous,seesaw"], "Did you mean 'continuous'?"),
        ("policies", ["--policies", "continuous --no-tail"], "--max-prefill-chunk"),
        ("policies", ["--policies", "continuous --max-prefill-chunk x"], "not a valid integer"),
        ("policies", ["--policies", "continuous 'x"], "expected a name, then flags"),
        ("policies", ["--policies", "seesaw,seesaw --no-tail,seesaw"], "named twice"),
        ("policies", [*POLICIES, "--no-tail"], "--policies 'seesaw --no-tail ..'"),
        ("policies", [*POLICIES, "--prefill-layout", "pp2", "--decode-layout", "tp2"],
         "needs one layout"),
        ("policies", ["--policies", "seesaw,prefill-first", "--layouts", "pp2:tp2"],
         "policy='prefill-first' keeps no KV in the host tier"),
        ("policies", ["--policies", "continuous,nexus", "--tensor-parallel-size", "2"],
         "policy='nexus' runs two lanes"),
        ("policies", ["--device", "cpu", "--policies", "continuous,sarathi-serve --token-budget "
                      "4096"], "max_num_batched_tokens=2048"),
        ("policies", ["--device", "cpu", "--policies", "seesaw,continuous", "--host-kv-memory",
                      "1GiB"], "policy='continuous' uses no host tier"),
        ("policies", ["--device", "cpu", "--policies", "continuous,nexus", "--num-devices", "2",
                      "--decode-layout", "dp2"], "two lanes on one device of this process"),
        ("serve", ["--device", "cpu", "--policy", "sarathi-serve", "--token-budget", "0"],
         "expected tokens, at least 1"),
        ("serve", ["--policy", "sesaw"], "seesaw"),
        ("serve", ["--qps", "1,two"], "expected a number above 0"),
        ("serve", ["--qps", "0"], "expected a number above 0"),
        ("serve", ["--qps", "1,2,1"], "named twice"),
        ("serve", ["--qps", "1,2", "--capacity"], "begins at one rate"),
        ("serve", ["--arrivals", "trace"], "comes without arrivals"),
        ("serve", ["--arrivals", "trace", "--workload", "azure-conv", "--qps", "1"], "--qps"),
        ("serve", ["--arrivals", "trace", "--workload", "azure-conv", "--capacity"], "--capacity"),
        ("serve", ["--arrivals", "gamma"], "--cv"),
        ("serve", ["--cv", "2"], "--cv"),
        ("serve", ["--max-delay-s", "3"], "a bound of --capacity"),
        ("serve", ["--machine", "8xl4"], "--simulate"),
        ("serve", ["--simulate", "--cpu-threads", "2"], "no model is loaded"),
        ("serve", ["--simulate", "--trace", "t.json"], "no model is loaded"),
        ("serve", ["--trace", "t.txt"], "ends in .json"),
        ("serve", ["--workload", "sharegtp"], "sharegpt"),
        ("serve", ["--workload", "100:100", "--longest", "50"], "the shortest"),
        ("serve", ["--journal", "/nowhere/at/all.jsonl"], "--journal"),
        ("serve", ["--output-json", "/nowhere/at/all.json"], "--output-json"),
        ("serve", ["--plot", "/nowhere/at/all.svg"], "plot"),
        ("serve", ["--plot", "picture.pdf"], ".svg"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_a_model_is_read(
    command: str, flags: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", command, "--model", "/no/such/model", *flags]) == 2
    told = capsys.readouterr().err
    assert named in " ".join(told.split()), told
    assert "Traceback" not in told
