"""Where the time of steps went: every part of a step is named, and nothing is counted unasked."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from seesaw import cli
from seesaw.api.llm import LLM
from seesaw.engine.profile import BETWEEN, StepClock, StepProfile, describe
from seesaw.ops.native import native
from seesaw.sampling_params import SamplingParams
from seesaw.scheduler.output import Batch, Row, SchedulerOutput

GREEDY = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
SETTINGS = {"dtype": "float32", "device_memory": "512MiB", "enable_prefix_caching": False}
LAYERS = {"embed", "norms", "qkv", "rope_kv", "attention", "o", "gate_up", "down", "head"}


def test_a_clock_splits_what_it_marked() -> None:
    clock = StepClock(True, torch.device("cpu"))
    clock.begin()
    time.sleep(0.02)
    clock.mark("a")
    clock.mark("b")
    clock.split("a", {"c": 0.005, "d": 0.001})
    parts = clock.end()
    assert set(parts) == {"a", "b", "c", "d"}
    assert parts["a"] >= 0.014 > parts["b"]
    clock.begin()
    assert clock.end() == {}


def test_a_clock_that_is_off_counts_nothing() -> None:
    clock = StepClock(False, torch.device("cpu"))
    clock.begin()
    clock.mark("a")
    clock.split("a", {"b": 1.0})
    assert clock.end() == {}


def test_steps_add_up_by_kind() -> None:
    profile = StepProfile()
    decode = Row("a", 5, 1, 0, 3, True)
    prompt = Row("b", 0, 4, 0, 3, True)
    profile.add(SchedulerOutput(1, batches=[Batch([decode])]), {"x": 1.0}, 1.5)
    profile.add(SchedulerOutput(2, batches=[Batch([decode, prompt])]), {"x": 2.0, "y": 3.0}, 5.0)
    profile.add(SchedulerOutput(3, batches=[Batch([decode, decode])]), {"x": 1.0}, 0.5)
    figures = profile.figures()
    assert figures == {
        "decode": {"steps": 2, "tokens": 3, "parts_s": {"x": 2.0, BETWEEN: 0.5}},
        "prompts": {"steps": 1, "tokens": 5, "parts_s": {"x": 2.0, "y": 3.0, BETWEEN: 0.0}},
    }
    table = describe(figures).splitlines()
    assert [line.split()[0] for line in table[1:]] == ["x", "y", "between", "all"]
    assert table[1].split() == ["x", "1000.000", "80.0%", "2000.000", "40.0%"]
    assert max(map(len, table)) <= 80


@pytest.mark.parametrize("layouts", [{}, {"prefill_layout": "pp2", "decode_layout": "tp2"}])
def test_an_engine_names_every_part_of_its_steps(
    tiny_checkpoint: Callable[..., Path],
    layouts: dict[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with LLM(str(tiny_checkpoint("qwen3")), profile=True, **SETTINGS, **layouts) as llm:
        llm.generate([[5] * 20, [7] * 30], GREEDY, use_tqdm=False)
        llm.engine.settle()
        figures = llm.engine.take_profile().figures()
        assert llm.engine.take_profile().kinds == {}
        llm.generate([[5] * 20], GREEDY, use_tqdm=False)
        with caplog.at_level(logging.INFO):
            llm.engine.shutdown()
    assert "time of steps by part:" in caplog.text
    decode = figures["decode"]
    assert decode["steps"] >= 4
    assert decode["tokens"] >= 2 * 4
    assert sum(kind["tokens"] for kind in figures.values()) >= 50 + 8
    wanted = {"inputs", "sampling", BETWEEN, "decoder"} | (LAYERS if native() else set())
    if layouts:
        wanted |= {"all_reduce"} if native() else set()
        assert any("reshard" in kind["parts_s"] for kind in figures.values())
    assert wanted <= set(decode["parts_s"])
    assert all(seconds >= 0 for kind in figures.values() for seconds in kind["parts_s"].values())


def test_nothing_is_counted_unasked(tiny_checkpoint: Callable[..., Path]) -> None:
    with LLM(str(tiny_checkpoint("qwen3")), **SETTINGS) as llm:
        llm.generate([[5] * 20], GREEDY, use_tqdm=False)
        assert llm.engine.take_profile().kinds == {}


def test_bench_throughput_prints_and_keeps_it(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    arguments = [
        "bench", "throughput", "--model", str(tiny_checkpoint("qwen3")), "--num-prompts", "3",
        "--input-len", "9", "--output-len", "4", "--repeats", "1", "--device-memory", "512MiB",
        "--profile", "--output-json", str(out),
    ]  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 0
    assert "decode, ms a step" in capsys.readouterr().out
    figures = json.loads(out.read_text())["profile"]
    assert figures["decode"]["steps"] == 3
    assert figures["decode"]["tokens"] == 9
