"""A config becomes the same numbers as in transformers, or an error that names the field."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seesaw.errors import ModelError
from seesaw.families import spec_from_hf
from tests.checkpoints import FAMILIES, tiny_config, tiny_model
from tests.families.sparse import SPARSE


def config_of(family: str, **overrides: Any) -> dict[str, Any]:
    """A complete config.json of a tiny model, as transformers writes it."""
    config = json.loads(tiny_config(family, **overrides).to_json_string(use_diff=False))
    names = {"gemma3": "Gemma3ForCausalLM", "llama": "LlamaForCausalLM"}
    config["architectures"] = [names.get(family, f"{family.capitalize()}ForCausalLM")]
    return config


VARIANTS = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", {"num_key_value_heads": 4, "head_dim": 8}),
    ("qwen2", {}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}),
    ("qwen3", {}),
    ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    ("mistral", {}),
    ("mistral", {"sliding_window": None, "num_key_value_heads": 1}),
    ("gemma3", {}),
    ("gemma3", {"final_logit_softcapping": 30.0, "num_hidden_layers": 7}),
    ("gemma3", {"tie_word_embeddings": False, "attention_bias": True}),
]


@pytest.mark.parametrize(("family", "overrides"), VARIANTS)
def test_spec_lists_exactly_the_tensors_of_the_model(family, overrides):
    model = tiny_model(tiny_config(family, **overrides))
    spec = spec_from_hf(config_of(family, **overrides))
    expected = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    if spec.tie_word_embeddings:
        del expected["lm_head.weight"]
    assert {p.name: p.shape for p in spec.params} == expected
    assert spec.num_parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("family", "overrides"), VARIANTS)
def test_spec_equals_transformers_config(family, overrides):
    config = tiny_config(family, **overrides)
    spec = spec_from_hf(config_of(family, **overrides))
    for name in (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "vocab_size", "max_position_embeddings", "rms_norm_eps",
        "tie_word_embeddings",
    ):  # fmt: skip
        assert getattr(spec, name) == getattr(config, name), name
    assert spec.head_dim == getattr(
        config, "head_dim", config.hidden_size // config.num_attention_heads
    )
    assert spec.eos_token_ids == (config.eos_token_id,)
    model = tiny_model(config)
    for layer, ours in zip(model.model.layers, spec.layers, strict=True):
        theirs = getattr(layer.self_attn, "sliding_window", None)
        if family == "mistral":
            theirs = config.sliding_window
        assert ours.sliding_window == theirs
        assert spec.sm_scale == pytest.approx(layer.self_attn.scaling)


def test_gemma_layers_have_their_own_rope_in_both_spellings():
    old = config_of("gemma3")
    del old["rope_parameters"]
    old |= {"rope_theta": 5e5, "rope_local_base_freq": 2e4}
    old["rope_scaling"] = {"type": "linear", "factor": 8.0}
    new = config_of("gemma3")
    new["rope_parameters"] = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }
    for config in (old, new):
        local, everywhere = (spec_from_hf(config).layers[i].rope for i in (0, 1))
        assert (local.theta, local.kind) == (2e4, "default")
        assert (everywhere.theta, everywhere.kind) == (5e5, "linear")
        assert dict(everywhere.params) == {"factor": 8.0}


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 128},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.3,
         "original_max_position_embeddings": 64, "beta_fast": 16, "beta_slow": 2},
        {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5, "truncate": False},
    ],
)  # fmt: skip
def test_rope_values_are_those_that_transformers_computes_with(spelling, rope):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = config_of("llama")
    del config["rope_parameters"]
    spec = spec_from_hf(config | {"rope_theta": 3e4, spelling: dict(rope)})
    found = spec.layers[0].rope
    assert (found.theta, found.kind) == (3e4, rope["rope_type"])
    params = dict(found.params)
    reference = tiny_config("llama", rope_parameters={"rope_theta": 3e4, **rope})
    _, attention_factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](reference, "cpu")
    assert params.get("attention_factor", 1.0) == pytest.approx(attention_factor)
    for name in params.keys() & reference.rope_parameters.keys():
        assert params[name] == reference.rope_parameters[name]


def test_yarn_extends_the_context():
    config = config_of("qwen2")
    config["rope_parameters"] = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
    spec = spec_from_hf(config)
    assert spec.max_position_embeddings == 4 * 512
    params = dict(spec.layers[0].rope.params)
    assert params["original_max_position_embeddings"] == 512
    assert params["attention_factor"] == pytest.approx(0.1 * math.log(4) + 1)


def test_absent_fields_take_the_defaults_of_transformers():
    small = {"num_hidden_layers": 2, "architectures": ["MistralForCausalLM"], "vocab_size": 8,
             "hidden_size": 64, "intermediate_size": 8, "num_attention_heads": 8,
             "max_position_embeddings": 64}  # fmt: skip
    mistral = spec_from_hf(small)
    assert mistral.layers[0].sliding_window == 4096
    assert mistral.num_key_value_heads == 8
    assert not mistral.tie_word_embeddings
    gemma = spec_from_hf({"architectures": ["Gemma3ForCausalLM"]})
    from transformers import Gemma3TextConfig

    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "head_dim"):
        assert getattr(gemma, name) == getattr(Gemma3TextConfig(), name)
    assert gemma.tie_word_embeddings
    assert [layer.sliding_window for layer in gemma.layers[:7]] == [*[4096] * 5, None, 4096]


def test_text_part_of_a_model_that_also_sees():
    text = config_of("gemma3")
    whole = {"architectures": ["Gemma3ForConditionalGeneration"], "dtype": "bfloat16",
             "eos_token_id": [1, 106], "text_config": text, "vision_config": {}}  # fmt: skip
    del text["architectures"], text["dtype"], text["eos_token_id"]
    spec = spec_from_hf(whole)
    assert spec.hidden_size == 64
    assert spec.eos_token_ids == (1, 106)
    assert spec.torch_dtype == "bfloat16"


BAD = [
    ("llama", {"hidden_size": None}, ["hidden_size", "integer"]),
    ("llama", {"hidden_size": "64"}, ["hidden_size='64'", "integer from 1"]),
    ("llama", {"num_hidden_layers": 10**9}, ["num_hidden_layers=1000000000", "to 4096"]),
    ("llama", {"num_key_value_heads": 3}, ["num_key_value_heads=3", "divisor"]),
    ("llama", {"head_dim": 7}, ["head_dim=7", "even"]),
    ("llama", {"rms_norm_eps": 0}, ["rms_norm_eps=0", "above 0"]),
    ("llama", {"hidden_act": "relu"}, ["hidden_act='relu'", "silu", "not supported"]),
    ("llama", {"dtype": "float8_e4m3fn"}, ["dtype", "bfloat16"]),
    ("llama", {"partial_rotary_factor": 0.5}, ["partial_rotary_factor=0.5"]),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2}}, ["dynamic", "yarn"]),
    ("llama", {"rope_parameters": {"rope_type": "longrope"}}, ["longrope"]),
    ("llama", {"rope_parameters": {"rope_type": "linear"}}, ["no factor"]),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2, "zeta": 1}}, ["zeta"]),
    ("llama", {"rope_parameters": 7}, ["rope_parameters=7", "object"]),
    ("llama", {"eos_token_id": ["a"]}, ["eos_token_id", "token id"]),
    ("llama", {"tie_word_embeddings": "yes"}, ["tie_word_embeddings='yes'", "true or false"]),
    ("qwen2", {"layer_types": ["sliding_attention"] * 3}, ["layer_types", "use_sliding_window"]),
    ("qwen3", {"layer_types": ["full_attention"]}, ["layer_types", "list of 3"]),
    ("mistral", {"layer_types": ["full_attention"] * 3}, ["layer_types", "sliding_attention"]),
    ("gemma3", {"attn_logit_softcapping": 50.0}, ["attn_logit_softcapping=50.0"]),
    ("gemma3", {"use_bidirectional_attention": True}, ["use_bidirectional_attention"]),
    ("gemma3", {"rope_parameters": {"rope_type": "default"}}, ["rope_parameters", "rope_type"]),
    ("llama", {"architectures": None}, ["architectures", "LlamaForCausalLM"]),
    ("llama", {"architectures": ["LLamaForCausalLM"]}, ["Did you mean 'LlamaForCausalLM'?",
                                                       "registry.py", "Gemma3ForCausalLM"]),
]  # fmt: skip


@pytest.mark.parametrize(("family", "change", "parts"), BAD)
def test_a_field_that_cannot_be_is_named(family, change, parts):
    config = config_of(family)
    config.pop("layer_types", None)
    with pytest.raises(ModelError) as caught:
        spec_from_hf(config | change, "there/config.json")
    for part in ["there/config.json", "expected", *parts]:
        assert part in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["yarn", "linear", "llama3", "default", "full_attention"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["rope_type", "type", "factor", "rope_theta", "full_attention", "mscale",
                         "low_freq_factor", "high_freq_factor", "attention_factor", "x"]),
        inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
CONFIGS = {family: config_of(family) for family in FAMILIES} | SPARSE
NAMES = [
    *sorted({name for config in CONFIGS.values() for name in config}),
    "rope_scaling", "rope_theta", "text_config", "torch_dtype", "original_max_position_embeddings",
]  # fmt: skip


@given(
    family=st.sampled_from(list(CONFIGS)),
    change=st.dictionaries(st.sampled_from(NAMES), JSON, min_size=1, max_size=3),
)
def test_garbage_is_refused_or_understood(family, change):
    try:
        spec = spec_from_hf(CONFIGS[family] | change)
    except ModelError:
        return
    assert len(spec.layers) == spec.num_hidden_layers
    assert spec.params


def test_families_need_the_standard_library_only():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['numpy'] = None; import seesaw.families;"
        "print(sorted(m for m in sys.modules if m.partition('.')[0] in ('jinja2', 'tokenizers')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
