"""`seesaw plan`: flags in, a table, JSON, exit codes and a command out, and no torch on the way."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from seesaw.api.commands.plan import _report
from seesaw.api.commands.run_batch import run_batch
from seesaw.config import EngineConfig
from tests.api.command import fails, run, run_json
from tests.plan.models import config_of, write_model

# -- what is said ----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("price", [None, 13.35])
def test_a_table_for_a_narrow_terminal_cuts_no_cell_short(
    model: Path, width: int, price: float | None
) -> None:
    settings = {"max_num_batched_tokens": 1024, "max_num_seqs": 256}
    report = _report(
        str(model), "8xl4", "3000:250", 200, None, price, None, max_model_len=4096, **settings
    )
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    report.print(console, top=50)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    (head,) = (at for at, line in enumerate(lines) if "layouts" in line and "tokens/s" in line)
    rows = lines[head:]
    assert not any("\u2026" in line for line in lines)
    for one in report.plan.candidates[:50]:
        (row,) = (
            row for row in rows if f"  {one.name}  " in row and f"{one.tokens_per_s:,.0f}" in row
        )
        assert len(row) <= width
    left_out = next((line for line in lines if line.startswith("no room for")), "")
    assert all((name in lines[head]) != (name in left_out) for name in ("policy", "limited by"))


def test_the_plan_for_machines(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json([*asked, "--workload", "arxiv"], capsys)
    best = found["recommended"]
    assert best["prefill_layout"] == "dp1-tp1-pp4"
    assert best["policy"] == "seesaw"
    assert best["tokens_per_s"] == pytest.approx(200 * 3250 / best["elapsed_s"])
    assert best["command"].startswith("seesaw run-batch ")
    names = [(one["prefill_layout"], one["decode_layout"]) for one in found["candidates"]]
    assert len(set(names)) == len(names)
    assert (best["prefill_layout"], best["decode_layout"]) in names
    speeds = [one["tokens_per_s"] for one in found["candidates"]]
    assert speeds == sorted(speeds, reverse=True)
    assert all(one["missing_bytes"] > 0 and one["reason"] for one in found["refused"])
    assert ("dp4-tp1-pp1", "dp4-tp1-pp1") in {
        (one["prefill_layout"], one["decode_layout"]) for one in found["refused"]
    }
    assert found["machine"]["ways"] == [{"slug": "4xl4", "name": "4 NVIDIA L4", "num_devices": 4}]
    assert found["workload"]["name"] == "arxiv"
    assert found["workload"]["mean_prompt_tokens"] == 3000
    assert found["workload"]["num_requests"] == 200
    assert "split gains" in found["verdict"]
    memory = best["memory"]
    assert (
        memory["arena_bytes"] + memory["work_bytes"] + memory["kv_bytes"]
        <= (memory["budget_bytes"])
    )


def test_the_plan_for_people(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "plan.json"
    args = [*asked, "--workload", "arxiv", "--price-per-hour", "4", "--top", "3"]
    assert run([*args, "--output-json", str(target)]) == 0
    told = capsys.readouterr().out
    found = json.loads(target.read_text())
    assert "4 NVIDIA L4" in told
    assert "200 requests of 3000 tokens in and 250 out" in told
    assert "tokens/s" in told
    assert "$/1M tokens" in told
    for name in ("pp4 -> tp4", "seesaw", "matrix products", "do not fit: "):
        assert name in told
    for one in found["candidates"][:3]:
        assert f"{one['tokens_per_s']:,.0f}" in told
        price = 4 / 3600 / one["tokens_per_s"] * 1e6
        assert one["price_per_million_tokens"] == pytest.approx(price)
        assert f"{price:.3f}" in told
    left = len(found["candidates"]) - 3
    assert f"{left} more candidates" in told
    assert "memory budget" in told
    assert "KV tier" in told
    assert found["verdict"][:40] in told
    assert found["recommended"]["command"] in told
    assert run(asked) == 0
    assert "$/1M tokens" not in capsys.readouterr().out


def test_no_split_pays(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json([*asked, "--workload", "64:1000"], capsys)
    assert found["verdict"].startswith("no split pays here")
    best = found["recommended"]
    assert best["prefill_layout"] == best["decode_layout"]
    assert best["policy"] == "continuous"
    assert best["num_transitions"] == 0


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["--max-num-seqs", "64", "--dtype", "float16", "--max-model-len", "4096"],
        ["--host-kv-memory", "20GiB", "--gpu-memory-utilization", "0.85"],
        ["--device-memory", "20GiB", "--num-devices", "2"],
    ],
)
@pytest.mark.parametrize("workload", ["arxiv", "64:1000"])
def test_the_command_is_one_that_run_batch_takes(
    asked: list[str], settings: list[str], workload: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run_json([*asked, *settings, "--workload", workload], capsys)
    best = found["recommended"]
    words = shlex.split(best["command"])
    assert words[:2] == ["seesaw", "run-batch"]
    # Click keeps the first help option that a command was asked for: here as in the whole program.
    names = {"help_option_names": ["-h", "--help"]}
    values = run_batch.make_context("run-batch", words[2:], **names).params
    config = EngineConfig(
        **{name: values[name] for name in EngineConfig.__dataclass_fields__ if name in values}
    )
    assert config.given_layouts is not None
    assert [str(layout) for layout in config.given_layouts] == [
        best["prefill_layout"], best["decode_layout"],
    ]  # fmt: skip
    assert config.max_num_batched_tokens == best["max_num_batched_tokens"] == 1024
    assert config.resolve_policy(best["prefill_layout"] != best["decode_layout"]) == best["policy"]
    assert Path(config.model).name == "llama 15b"
    given = dict(zip(settings[::2], settings[1::2], strict=True))
    for flag, value in given.items():
        name = flag.removeprefix("--").replace("-", "_")
        is_moot = name == "num_devices" or (
            name == "host_kv_memory" and best["policy"] == "continuous"
        )
        assert is_moot or str(getattr(config, name)) == value


def test_every_chunk_is_tried_unless_one_is_given(
    asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = run_json(asked, capsys)
    assert {one["max_num_batched_tokens"] for one in given["candidates"]} == {1024}
    chunk = ("--max-num-batched-tokens", "1024")
    free = run_json([word for word in asked if word not in chunk], capsys)
    assert len({one["max_num_batched_tokens"] for one in free["candidates"]}) > 1
    assert free["recommended"]["tokens_per_s"] >= given["recommended"]["tokens_per_s"]


def test_what_is_planned_only_is_said(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run_json([*asked, "--kv-dtype", "fp8"], capsys)
    assert any("fp8 is planned only" in note for note in found["notes"])
    assert any("no weights in" in note for note in found["notes"])
    experts = write_model(
        tmp_path / "moe",
        config_of(
            "8B", architectures=["MixtralForCausalLM"], num_local_experts=8, num_experts_per_tok=2
        ),
    )
    found = run_json([*asked, "--model", str(experts), "--machine", "8xl40s"], capsys)
    assert [note for note in found["notes"] if "planned only" in note] == []
    assert found["recommended"]["tokens_per_s"] > 0


def test_requests_that_run_from_the_tier_are_said(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "llama 70b", config_of("70B"))
    asked = [*asked, "--model", str(model), "--machine", "8xl4", "--workload", "1000:250"]
    found = run_json([*asked, "--running-tier", "on"], capsys)
    turning = [one["running_tier"] for one in found["candidates"] if one["running_tier"]]
    assert turning, "no candidate has three decode stages"
    for one in turning:
        assert one["tokens"] > 0
        assert one["batch"] >= one["still"] >= 1
    off = run_json([*asked, "--running-tier", "off"], capsys)
    assert not any(one["running_tier"] for one in off["candidates"])
    assert run([*asked, "--running-tier", "on"]) == 0
    is_told = "running requests in the tier: " in capsys.readouterr().out
    is_on = found["recommended"]["running_tier"] is not None
    assert is_told == is_on == ("--running-tier on" in found["recommended"]["command"])


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--machine", "8xl5"], "'l5' is not known"),
        (["--machine", "nowhere.json"], "no such file"),
        (["--workload", "sharegtp"], "Did you mean 'sharegpt'?"),
        (["--workload", "100:-5"], "expected 1 or more of both"),
        (["--workload", "nowhere.jsonl"], "no such file"),
        (["--workload", "arxiv", "--answer-tokens", "5"], "has answers of its own"),
        (["--model", "nowhere"], "is not there"),
        (["--model", "x.gguf"], "a GGUF file has none"),
        (["--num-requests", "0"], "0 is not in the range"),
        (["--price-per-hour", "-1"], "expected a number above 0"),
        (["--num-devices", "5"], "num_devices=5"),
        (["--max-model-len", "20000"], "max_model_len=20000"),
        (["--device-memory", "lots"], "expected bytes"),
        (["--kv-dtype", "int3"], "'int3' is not one of"),
        (["--machine", "4xt4", "--dtype", "bfloat16"], "Use --dtype float16"),
    ],
)
def test_mistakes_are_told(
    asked: list[str], more: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in fails([*asked, *more], capsys)


def test_a_config_that_is_not_known(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = write_model(tmp_path / "strange", config_of("8B", architectures=["LamaForCausalLM"]))
    told = fails([*asked, "--model", str(strange / "config.json")], capsys)
    assert "Did you mean 'LlamaForCausalLM'?" in told
    odd = write_model(tmp_path / "odd", config_of("8B", hidden_size=-1))
    assert "hidden_size" in fails([*asked, "--model", str(odd)], capsys)


def test_nothing_fits(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    told = fails([*asked, "--machine", "l4"], capsys, code=1)
    assert "none of 1 layouts has room" in told
    assert "weights 27" in told
    told = fails([*asked, "--host-kv-memory", "9TiB", "--machine", "1xl4"], capsys, code=1)
    assert "more than there is" in told


@pytest.mark.parametrize("arguments", [["--help"], None])
def test_no_torch_and_no_numpy(arguments: list[str] | None, asked: list[str]) -> None:
    code = f"""
import sys
from seesaw.cli import main
try:
    main({asked[:1] + arguments if arguments else asked!r})
except SystemExit as stop:
    assert stop.code in (0, None), stop.code
print([name for name in ("torch", "numpy", "transformers") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n[]\n")


def test_the_command_for_the_machine_at_hand_runs(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Planned for a batch file, and run as it is printed."""
    row = {"custom_id": "a", "method": "POST", "url": "/v1/completions",
           "body": {"prompt": "The dog", "max_tokens": 4}}  # fmt: skip
    job = tmp_path / "in.jsonl"
    job.write_text(json.dumps(row) + "\n")
    model = str(tiny_checkpoint("llama"))
    capsys.readouterr()
    found = run_json(
        ["plan", "--model", model, "--workload", str(job),
         "--num-devices", "2", "--dtype", "float32", "--device-memory", "512MiB"],
        capsys,
    )  # fmt: skip
    words = shlex.split(found["recommended"]["command"])
    words[words.index("out.jsonl")] = str(tmp_path / "out.jsonl")
    assert run(words[1:]) == 0
    (answer,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert answer["response"]["status_code"] == 200


@pytest.mark.parametrize("price", ["nan", "inf", "0", "-1"])
def test_a_price_is_a_number(
    price: str, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "expected a number above 0" in fails([*asked, "--price-per-hour", price], capsys)
