"""Checkpoints of models with experts, in either form that transformers writes."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from seesaw.config import EngineConfig
from seesaw.errors import ModelError
from seesaw.weights.checkpoint import open_checkpoint
from tests.checkpoints import SPARSE_FAMILIES, make_checkpoint, tiny_config, tiny_model
from tests.weights.unfused import assert_same

CPU = torch.device("cpu")


def opened(folder):
    return open_checkpoint(EngineConfig(model=str(folder)))


@pytest.fixture
def fused(tmp_path):
    """A checkpoint whose experts are two tensors of a layer, and its model."""

    def write(family, **overrides):
        model = tiny_model(tiny_config(family, **overrides))
        model.save_pretrained(tmp_path, save_original_format=False)
        return tmp_path, model

    return write


@pytest.mark.parametrize("family", SPARSE_FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_experts_are_read_as_single_ones(fused, family, dtype, caplog):
    folder, model = fused(family)
    names = load_file(folder / "model.safetensors").keys()
    assert "model.layers.0.mlp.experts.gate_up_proj" in names
    checkpoint = opened(folder)
    assert_same(checkpoint.spec, checkpoint.load_params(dtype, CPU), model)
    assert "not used" not in caplog.text


@pytest.mark.parametrize("family", SPARSE_FAMILIES)
def test_a_fused_tensor_of_another_shape_is_refused(fused, family):
    folder, _ = fused(family)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.2.mlp.experts.down_proj"
    tensors[name] = tensors[name].transpose(1, 2).contiguous()
    save_file(tensors, path)
    with pytest.raises(ModelError, match="config and the weights are not of the same") as caught:
        opened(folder)
    assert name in str(caught.value)


@pytest.mark.parametrize("family", SPARSE_FAMILIES)
def test_a_missing_expert_is_named(tmp_path, family):
    make_checkpoint(tmp_path, family)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if ".experts.3." in name)
    save_file({n: t for n, t in tensors.items() if n != name}, path)
    with pytest.raises(ModelError, match="missing") as caught:
        opened(tmp_path)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("mixtral", {"num_local_experts": 1, "num_experts_per_tok": 1}),
        ("mixtral", {"intermediate_size": 37, "num_hidden_layers": 1}),
        ("qwen3_moe", {"mlp_only_layers": [], "decoder_sparse_step": 2}),
        ("qwen3_moe", {"mlp_only_layers": [0, 1, 2]}),
        ("qwen3_moe", {"moe_intermediate_size": 130}),  # wider than the plain MLP
    ],
)
def test_variants(tiny_checkpoint, family, overrides):
    from transformers import AutoModelForCausalLM

    folder = tiny_checkpoint(family, **overrides)
    checkpoint = opened(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert_same(checkpoint.spec, checkpoint.load_params(torch.float32, CPU), model)
