"""`seesaw tune` as its users run it, on trials that are no card."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from seesaw.api.commands import tune as command
from seesaw.families.registry import spec_from_hf
from seesaw.kernels.config_files import read_all
from seesaw.kernels.kernel import Config
from seesaw.tune.model_cases import fit, works
from seesaw.tune.trials import ProcessTrials
from seesaw.tune.units import Unit, Work
from tests.api.command import run, run_json

FAKE = Path(__file__).parents[1] / "tune" / "fake_trial.py"
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 2, "num_attention_heads": 9, "num_key_value_heads": 3,
    "vocab_size": 1000, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
    "torch_dtype": "float16",
}  # fmt: skip


class FakeTrials(ProcessTrials):
    """Two keys with three candidates each, whatever is asked for."""

    def __init__(self) -> None:
        super().__init__([sys.executable, str(FAKE)], start_s=30.0, try_s=5.0)

    def units(self, works: Sequence[Work]) -> list[Unit]:
        configs = tuple(Config({"BLOCK": block}) for block in (80, 125, 13))
        slow = tuple(Config({"BLOCK": block}) for block in (50, 60, 17))
        return [
            Unit("rms_norm", {"size": 64}, (works[0],), configs),
            Unit("rms_norm", {"size": 80}, (works[0],), slow),
        ]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder that it writes to."""
    folder = tmp_path / "tuned"
    monkeypatch.setenv("SEESAW_TUNED_CONFIG_FOLDER", str(folder))
    monkeypatch.setattr(command, "make_trials", FakeTrials)
    return folder


def test_says_what_is_ahead_and_what_was_found(
    fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tune", "--op", "rms_norm"]) == 0
    said = capsys.readouterr()
    assert "6 candidates for 2 keys" in said.err
    assert "hours (a guess" in said.err
    assert "rms_norm,size=64: tuned, 1.25x the default" in said.out
    assert "1 wrong" in said.out
    assert "rms_norm,size=80: the default is best" in said.out
    assert "1 of 2 keys" in said.out
    assert [one.config for one in read_all(fake, "rms_norm")] == [Config({"BLOCK": 125})]
    assert run(["tune", "--op", "rms_norm"]) == 0
    assert "6 of them tried before; about 0.0 hours." in capsys.readouterr().err


def test_output_json_and_folder(
    fake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["tune", "--op", "rms_norm", "--output-dir", str(tmp_path / "here")]
    first, second = run_json(args, capsys)
    assert first["verdict"] == "tuned"
    assert first["config"]["BLOCK"] == 125
    assert Path(first["file"]).is_relative_to(tmp_path / "here")
    assert second["bad"] == {"crashed": 1}
    assert not fake.exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--op", "rmsnorm"], "Did you mean 'rms_norm'"),
        (["--op", "linear_add"], "not timed on a GPU"),
        (["--budget", "soon"], "90s, 30m or 2h"),
        (["--budget", "0m"], "90s, 30m or 2h"),
        (["--model", "nowhere/config.json"], "nowhere"),
    ],
)
def test_refuses_before_anything_is_tried(
    fake: Path, capsys: pytest.CaptureFixture[str], args: list[str], said: str
) -> None:
    assert run(["tune", *args]) == 2
    assert said in capsys.readouterr().err
    assert not fake.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tune"]) == 2
    assert "found no GPU" in capsys.readouterr().err


def test_a_models_sizes_stand_in_for_the_benches() -> None:
    spec = spec_from_hf(LLAMA)
    case = {"rows": ((1, 9),), "kv_heads": 8, "group": 4, "head_dim": 128, "block_size": 16}
    assert fit(case, spec) == {**case, "kv_heads": 3, "group": 3, "head_dim": 64}
    assert fit({"tokens": 4, "experts": 8, "top_k": 2}, spec) is None
    assert all(work.dtype == "float16" for work in works(["rms_norm"], spec))
