"""The policy that CONTRIBUTING.md shows: pasted into a file that no package of seesaw knows it runs
with the flags that the page says."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api.command import run, run_json
from tests.readme_blocks import code_blocks

PAGE = Path(__file__).parent.parent.parent / "CONTRIBUTING.md"
MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5, "torch_dtype": "float16",
}  # fmt: skip


@pytest.fixture
def pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The flags that the page gives, with its module on the path."""
    text = PAGE.read_text(encoding="utf-8")
    (block,) = [one for one in code_blocks(text) if "def plan(" in one.code]
    flags = re.search(r"`--policy ([\w.]+):(\w+) --chunk (\d+)`", text)
    assert flags is not None
    module, name, chunk = flags.groups()
    (tmp_path / f"{module}.py").write_text(block.code)
    monkeypatch.syspath_prepend(tmp_path)
    yield ["--policy", f"{module}:{name}", "--chunk", chunk]
    sys.modules.pop(module, None)


@pytest.fixture
def job(tmp_path: Path) -> list[str]:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MODEL))
    return ["simulate", "--model", str(folder), "--machine", "1xa100-80-sxm",
            "--workload", "200:20", "--num-requests", "40"]  # fmt: skip


def test_the_policy_of_the_page_runs_with_its_flags(
    pasted: list[str], job: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found: dict[str, Any] = run_json([*job, *pasted], capsys)
    assert found["policy"] == pasted[1]
    assert (found["num_requests"], found["output_tokens"]) == (40, 800)
    # Its option is what it says: with small chunks there are more steps.
    slower = run_json([*job, *pasted[:3], "2"], capsys)
    assert slower["scheduler"]["num_steps"] > 1.5 * found["scheduler"]["num_steps"]


def test_its_options_are_checked_as_all_are(
    pasted: list[str], job: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*job, *pasted[:2], "--chunks", "3"]) == 2
    assert "--chunk" in capsys.readouterr().err
