"""`seesaw bench` over a tiny checkpoint: the fields that people script against, and the rules."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from seesaw import cli
from seesaw.api.bench_throughput import Workload, peak_rss_bytes
from seesaw.ops.native import native

SETTINGS = ("--device-memory", "256MiB", "--dtype", "float32")


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Callable[..., Path]) -> str:
    return str(tiny_checkpoint("llama"))


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", *args])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_throughput(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "figures.json"
    sizes = ("--num-prompts", "6", "--input-len", "20", "--output-len", "5", "--repeats", "3")
    written = ("--output-json", str(target))
    assert run("throughput", "--model", model, *SETTINGS, *sizes, *written) == 0
    figures = json.loads(target.read_text())
    assert len(figures["elapsed_s_all"]) == 3
    assert figures["elapsed_s"] == min(figures["elapsed_s_all"])
    assert figures["total_tokens_per_s"] == pytest.approx(6 * 25 / figures["elapsed_s"])
    assert figures["output_tokens_per_s"] == pytest.approx(6 * 5 / figures["elapsed_s"])
    assert figures["start_s"] > 0
    assert figures["peak_rss_bytes"] > 2**20
    assert figures["settings"]["enable_prefix_caching"] is False
    assert figures["environment"]["libraries"]["torch"]
    assert figures["layouts"] == {"prefill": "dp1-tp1-pp1", "decode": "dp1-tp1-pp1"}
    assert figures["num_transitions"] == figures["kv_store_bytes"] == 0
    assert figures["phase_s"]["prefill"] == figures["phase_s"]["reshard"] == 0
    assert 0 < figures["phase_s"]["decode"] <= figures["elapsed_s"]
    assert 1 <= figures["mean_decode_batch"] <= 6
    out = capsys.readouterr().out
    assert "6 prompts x (20 in, 5 out)" in out
    assert "transitions" not in out


@pytest.mark.parametrize("reload", ["missing", "auto"])
def test_throughput_of_two_layouts_says_what_moved(
    model: str, reload: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "figures.json"
    # 6 prompts of 20 tokens take 2 tier blocks of 16 each; there are 4, so 2 prompts per cycle.
    tier = ("--tier-block-size", "16", "--block-size", "16", "--host-kv-memory", "48KiB")
    sizes = ("--num-prompts", "6", "--input-len", "20", "--output-len", "5", "--repeats", "1")
    layouts = ("--prefill-layout", "pp2", "--decode-layout", "tp2", "--no-tail")
    rest = ("--max-model-len", "64", "--reload", reload)
    rest += ("--device", "cpu", "--output-json", str(target))
    assert run("throughput", "--model", model, *SETTINGS, *tier, *sizes, *layouts, *rest) == 0
    figures = json.loads(target.read_text())
    assert figures["layouts"] == {"prefill": "dp1-tp1-pp2", "decode": "dp1-tp2-pp1"}
    assert figures["num_transitions"] >= 5  # into decode three times, back twice
    moved = ("kv_store_bytes", "kv_load_bytes", "kv_relay_bytes", "kv_peer_bytes")
    moved += ("weight_bytes_moved",)
    assert {name: figures[name] for name in moved} == figures["predicted"]
    assert figures["kv_store_bytes"] > figures["kv_relay_bytes"] == 0
    weights = figures["weight_bytes_moved"]
    assert weights["resident"] > 0
    if reload == "auto" and native() is not None:  # ranks run from the host's copy
        assert not any(weights[source] for source in ("copy", "peer", "host"))
    else:
        assert weights["host"] > 0
    assert 0 < figures["tier_peak_bytes"] <= 48 * 2**10
    assert all(seconds > 0 for seconds in figures["phase_s"].values())
    assert sum(figures["phase_s"].values()) <= figures["elapsed_s"]
    assert figures["transition_visible_s"] > 0
    assert figures["stalls"]["weights_s"] == figures["phase_s"]["reshard"]
    assert all(value >= 0 for value in figures["stalls"].values())
    assert f"{figures['num_transitions']} transitions" in capsys.readouterr().out


def test_throughput_under_the_limits_of_the_machine(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("seesaw._cpu")
    target, plot = tmp_path / "figures.json", tmp_path / "roof.svg"
    sizes = ("--num-prompts", "3", "--input-len", "20", "--output-len", "5", "--repeats", "2")
    written = ("--device", "cpu", "--output-json", str(target), "--plot", str(plot))
    assert run("throughput", "--model", model, *SETTINGS, *sizes, *written) == 0
    figures = json.loads(target.read_text())
    found = figures["roofline"]
    assert found["dtype"] == "float32"
    assert found["limits"]["flops"] == found["limits"]["float32_flops"] > 0
    points = found["points"]
    # Each prompt draws its first token; four steps of three rows draw the rest.
    assert sum(point["num_tokens"] for point in points) == 3 * (20 + 4)
    assert sum(point["seconds"] for point in points) <= figures["elapsed_s"]
    decode = found["steps"]["decode"]
    assert (decode["num_steps"], found["steps"]["prefill"]["num_steps"]) == (4, 1)
    assert decode["flops"] == sum(p["flops"] for p in points if p["kind"] == "decode")
    bound_s = sum(
        max(
            p["num_bytes"] / found["limits"]["read_bytes_per_s"],
            p["flops"] / found["limits"]["flops"],
        )
        for p in points
        if p["kind"] == "decode"
    )
    assert decode["of_bound"] == pytest.approx(bound_s / decode["seconds"])
    assert "prefill: 1 step, " in plot.read_text()
    out = capsys.readouterr().out
    shown = [line for line in out.splitlines() if line.startswith(("limits:", "decode"))]
    assert len(shown) == 2
    assert shown[1].endswith("of the bound")
    assert max(map(len, shown)) <= 80


@pytest.mark.parametrize(
    ("file", "device", "message"),
    [("roof.pdf", "cpu", "ends in .svg or .png"), ("no/such/roof.svg", "cpu", "does not exist")],
)
def test_a_plot_that_cannot_be_is_refused_before_the_model_is_loaded(
    file: str, device: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    plot = ("--plot", str(tmp_path / file), "--device", device)
    assert run("throughput", "--model", "/no/such/model", *plot) == 2
    assert message in capsys.readouterr().err


def test_throughput_that_does_not_fit_the_model_says_so(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("--input-len", "500", "--output-len", "13", "--num-prompts", "1")
    assert run("throughput", "--model", model, *SETTINGS, *args) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "512" in err


def test_startup(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("--repeats", "1", "--output-json", "-")
    assert run("startup", "--model", model, *SETTINGS, *args) == 0
    figures = json.loads(capsys.readouterr().out)
    (sample,) = figures["samples"]
    parts = ("import_seesaw_s", "import_engine_s", "load_s", "first_token_s")
    assert all(sample[part] > 0 for part in parts)
    assert figures["total_s"] == pytest.approx(sum(sample[part] for part in parts))
    assert figures["total_s"] <= sample["process_s"]


def test_startup_of_a_model_that_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("startup", "--model", "/no/such/model", "--repeats", "1") == 2
    err = capfd.readouterr().err
    assert "/no/such/model" in err
    assert "Traceback" not in err


def test_startup_where_the_import_fails_shows_no_traceback(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEESAW_LOGGING_LEVEL", "LOUD")
    assert run("startup", "--model", "/no/such/model", "--repeats", "1") == 2
    err = capfd.readouterr().err
    assert "SEESAW_LOGGING_LEVEL='LOUD': expected" in err
    assert "Traceback" not in err


def test_prompts_are_drawn_anew_from_the_whole_vocabulary() -> None:
    rng = random.Random()
    workload = Workload(num_prompts=40, input_len=50, output_len=1)
    first, second = workload.draw(rng, 11), workload.draw(rng, 11)
    assert first != second
    assert {len(prompt) for prompt in first + second} == {50}
    assert {token for prompt in first for token in prompt} == set(range(11))


def test_peak_rss_never_falls() -> None:
    before = peak_rss_bytes()
    block = bytearray(32 * 2**20)
    after = peak_rss_bytes()
    del block
    assert before <= after <= peak_rss_bytes()
