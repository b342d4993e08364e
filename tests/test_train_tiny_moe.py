"""`examples/train_tiny_moe.py`, with a model that is tinier still: seesaw runs what it writes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from seesaw import LLM, SamplingParams

SCRIPT = Path(__file__).parent.parent / "examples" / "train_tiny_moe.py"
TINY = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "moe_intermediate_size": 32, "num_experts": 8,
    "num_experts_per_tok": 2,
}  # fmt: skip


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_tiny_moe", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SIZES", TINY)
    monkeypatch.setattr(module, "VOCAB_SIZE", 300)
    return module


def test_the_same_seed_makes_the_same_checkpoint_and_seesaw_runs_it(
    script: ModuleType, tmp_path: Path
) -> None:
    found = [script.make(tmp_path / name, 3, seed, 60_000) for name, seed in
             (("one", 5), ("same", 5), ("other", 6))]  # fmt: skip
    one, same, other = (
        load_file(tmp_path / name / "model.safetensors") for name in ("one", "same", "other")
    )
    assert found[0] == found[1]
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    assert len(found[0]) == TINY["num_hidden_layers"]
    assert all(0 < entropy <= 1 for entropy in found[0])
    with LLM(str(tmp_path / "one"), dtype="float32", max_model_len=128) as llm:
        (answer,) = llm.generate(["The import statement"], SamplingParams(max_tokens=5))
    assert len(answer.outputs[0].token_ids) <= 5


def test_experts_answer_as_those_of_transformers(script: ModuleType) -> None:
    model = script.make_model(seed=1)
    tokens = torch.randint(300, (2, 33))
    found = model(input_ids=tokens).logits
    model.set_experts_implementation("eager")
    torch.testing.assert_close(found, model(input_ids=tokens).logits, rtol=1e-4, atol=1e-5)


def test_entropy_is_of_shares(script: ModuleType) -> None:
    assert script.entropy(torch.full((8,), 1 / 8)) == pytest.approx(1.0)
    assert script.entropy(torch.tensor([0.5, 0.5, 0.0, 0.0])) == pytest.approx(0.5)
    assert script.entropy(torch.tensor([1.0, 0.0])) == 0.0


def test_too_little_text_is_refused(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="Give more bytes"):
        script.make(tmp_path, 3, 0, 1000)
