"""Families with experts become the same numbers and tensors as in transformers, or an error."""

from __future__ import annotations

import math
from typing import Any

import pytest

from seesaw.errors import ModelError
from seesaw.families import ModelSpec, spec_from_hf
from tests.families.sparse import SPARSE

VARIANTS = [
    ("mixtral", {}),
    ("mixtral", {"num_local_experts": 8, "sliding_window": 32, "head_dim": 8}),
    ("mixtral", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    ("qwen3_moe", {}),
    ("qwen3_moe", {"attention_bias": True, "tie_word_embeddings": True}),
    ("qwen3_moe", {"mlp_only_layers": [0, 3], "norm_topk_prob": False}),
    ("qwen3_moe", {"decoder_sparse_step": 2}),
    ("qwen3_moe", {"decoder_sparse_step": 2, "mlp_only_layers": [1], "num_experts_per_tok": 6}),
    ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 2}),
    ("qwen3_moe", {"use_sliding_window": True}),
    ("qwen3_moe", {"mlp_only_layers": [0, 1, 2, 3, 4]}),
]
CLASSES = {"mixtral": "MixtralConfig", "qwen3_moe": "Qwen3MoeConfig"}


def theirs(family: str, **overrides: Any) -> Any:
    import transformers

    fields = {**SPARSE[family], **overrides}
    del fields["architectures"]
    return getattr(transformers, CLASSES[family])(**fields)


def meta_model(config: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def fused(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """The spec's tensors as transformers holds them: a layer's experts stacked, gate on up."""
    found: dict[str, tuple[int, ...]] = {}
    for param in spec.params:
        name = param.name.replace("block_sparse_moe", "mlp")
        if param.expert is not None:
            module, matrix = name.split(f".experts.{param.expert}.")
            inner, hidden = spec.moe_intermediate_size, spec.hidden_size
            if matrix.split(".")[0] in ("down_proj", "w2"):
                assert param.shape == (hidden, inner)
                name, shape = f"{module}.experts.down_proj", (hidden, inner)
            else:
                assert param.shape == (inner, hidden)
                name, shape = f"{module}.experts.gate_up_proj", (2 * inner, hidden)
            found[name] = (spec.num_experts, *shape)
        else:
            found[name] = param.shape
    return found


@pytest.mark.parametrize(("family", "overrides"), VARIANTS)
def test_spec_has_the_tensors_and_parameters_of_the_model(family, overrides):
    model = meta_model(theirs(family, **overrides))
    spec = spec_from_hf(SPARSE[family] | overrides)
    expected = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    if spec.tie_word_embeddings:
        del expected["lm_head.weight"]
    assert fused(spec) == expected
    assert spec.num_parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("family", "overrides"), VARIANTS)
def test_spec_equals_transformers_config(family, overrides):
    config = theirs(family, **overrides)
    spec = spec_from_hf(SPARSE[family] | overrides)
    for name in (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "vocab_size", "rms_norm_eps", "tie_word_embeddings",
    ):  # fmt: skip
        assert getattr(spec, name) == getattr(config, name), name
    layers = meta_model(config).model.layers
    for layer, ours in zip(layers, spec.layers, strict=True):
        assert ours.sparse == hasattr(layer.mlp, "experts")
        assert ours.sliding_window == config.sliding_window
        assert ours.rope.theta == config.rope_parameters["rope_theta"]
        assert spec.sm_scale == pytest.approx(layer.self_attn.scaling)
        if ours.sparse:
            router = layer.mlp.gate
            assert (spec.num_experts, spec.num_experts_per_tok) == (
                router.num_experts, router.top_k,
            )  # fmt: skip
            assert spec.norm_topk_prob == getattr(router, "norm_topk_prob", True)
    if not any(layer.sparse for layer in spec.layers):
        assert spec.num_experts == spec.moe_intermediate_size == 0


@pytest.mark.parametrize("family", SPARSE)
def test_files_that_transformers_writes_are_read(family, tmp_path):
    """Its own spelling of the config, and names and shapes of the tensors on disk."""
    import json

    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    spec = spec_from_hf(SPARSE[family])
    AutoModelForCausalLM.from_config(theirs(family)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert spec_from_hf(config).params == spec.params
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert {param.name: param.shape for param in spec.params} == stored


@pytest.mark.parametrize("family", SPARSE)
def test_absent_fields_take_the_defaults_of_transformers(family):
    import transformers

    needed = ("architectures", "vocab_size", "hidden_size", "num_hidden_layers",
              "num_attention_heads", "max_position_embeddings", "intermediate_size")  # fmt: skip
    spec = spec_from_hf({name: SPARSE[family][name] for name in needed} | {"hidden_size": 256,
                        "num_attention_heads": 32})  # fmt: skip
    default = getattr(transformers, CLASSES[family])()
    assert spec.num_key_value_heads == default.num_key_value_heads
    assert spec.num_experts == default.num_experts
    assert spec.num_experts_per_tok == default.num_experts_per_tok
    assert spec.rms_norm_eps == default.rms_norm_eps
    assert spec.layers[0].rope.theta == default.rope_parameters["rope_theta"]
    assert spec.layers[0].sliding_window == default.sliding_window
    assert all(layer.sparse for layer in spec.layers)
    if family == "qwen3_moe":
        assert spec.moe_intermediate_size == default.moe_intermediate_size
        assert spec.norm_topk_prob == default.norm_topk_prob


PUBLISHED = [
    (
        "mixtral",
        {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
         "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
         "num_local_experts": 8, "max_position_embeddings": 32768, "sliding_window": None},
        46.7,
    ),
    (
        "qwen3_moe",
        {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
         "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32,
         "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
         "max_position_embeddings": 40960, "mlp_only_layers": [], "decoder_sparse_step": 1,
         "use_sliding_window": False, "sliding_window": None, "max_window_layers": 48},
        30.5,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("family", "sizes", "billions"), PUBLISHED)
def test_published_sizes(family, sizes, billions):
    """Mixtral-8x7B and Qwen3-30B-A3B."""
    assert round(spec_from_hf(SPARSE[family] | sizes).num_parameters / 1e9, 1) == billions


def test_every_expert_is_told_apart_and_belongs_to_its_layer():
    spec = spec_from_hf(SPARSE["qwen3_moe"] | {"mlp_only_layers": [2]})
    experts = [param for param in spec.params if param.split_dim == "expert"]
    assert {param.layer for param in experts} == {0, 1, 3, 4}
    for param in experts:
        assert f"layers.{param.layer}.mlp.experts.{param.expert}." in param.name
    per_expert = 3 * spec.hidden_size * spec.moe_intermediate_size
    assert sum(math.prod(param.shape) for param in experts) == 4 * spec.num_experts * per_expert


BAD = [
    ("mixtral", {"num_local_experts": 0}, ["num_local_experts=0", "integer from 1"]),
    ("mixtral", {"num_experts_per_tok": 4}, ["num_experts_per_tok=4", "num_local_experts=3"]),
    ("mixtral", {"hidden_act": "gelu"}, ["hidden_act='gelu'", "silu", "not supported"]),
    ("mixtral", {"intermediate_size": None}, ["intermediate_size", "integer"]),
    ("mixtral", {"sliding_window": -1}, ["sliding_window=-1"]),
    ("qwen3_moe", {"num_experts": "six"}, ["num_experts='six'"]),
    ("qwen3_moe", {"num_experts_per_tok": 7}, ["num_experts_per_tok=7", "num_experts=6"]),
    ("qwen3_moe", {"mlp_only_layers": [5]}, ["mlp_only_layers=[5]", "from 0 to 4"]),
    ("qwen3_moe", {"mlp_only_layers": 3}, ["mlp_only_layers=3", "list"]),
    ("qwen3_moe", {"mlp_only_layers": [True]}, ["mlp_only_layers=[True]"]),
    ("qwen3_moe", {"decoder_sparse_step": 0}, ["decoder_sparse_step=0", "integer from 1"]),
    ("qwen3_moe", {"norm_topk_prob": 1}, ["norm_topk_prob=1", "true or false"]),
    ("qwen3_moe", {"moe_intermediate_size": 0.5}, ["moe_intermediate_size=0.5"]),
]


@pytest.mark.parametrize(("family", "change", "parts"), BAD)
def test_a_field_that_cannot_be_is_named(family, change, parts):
    with pytest.raises(ModelError) as caught:
        spec_from_hf(SPARSE[family] | change, "there/config.json")
    for part in ["there/config.json", "expected", *parts]:
        assert part in str(caught.value)
