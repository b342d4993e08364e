"""Qwen3 with experts: attention of Qwen3, and a router and experts in place of the MLP in all
layers but those that the config leaves plain."""

from __future__ import annotations

from seesaw.families.common import decoder_spec, num_layers
from seesaw.families.fields import Fields
from seesaw.families.rope import rope_from_hf
from seesaw.families.sparse import expert_features
from seesaw.families.spec import LayerSpec, ModelSpec

# What transformers takes where a config has no such field.
DEFAULTS = {"num_key_value_heads": 4, "sliding_window": 4096}


def from_hf(fields: Fields, architecture: str) -> ModelSpec:
    fields = fields.over(DEFAULTS)
    fields.text("hidden_act", "silu", ("silu",))
    rope = rope_from_hf(fields)
    window = None
    if fields.flag("use_sliding_window", False):  # of every layer, whatever max_window_layers says
        window = fields.optional_integer("sliding_window")
    layers = [LayerSpec(window, rope, sparse=sparse) for sparse in _sparse_layers(fields)]
    # transformers writes the count of experts under another name than the published configs.
    count = "num_experts" if "num_experts" in fields else "num_local_experts"
    experts = {
        "moe_intermediate_size": fields.integer("moe_intermediate_size", 768),
        "norm_topk_prob": fields.flag("norm_topk_prob", False),
        **expert_features(fields, count=count, default_count=128, default_per_token=8),
    }
    bias = fields.flag("attention_bias", False)
    return decoder_spec(
        fields,
        "qwen3_moe",
        architecture,
        layers,
        context_rope=rope,
        attention_bias=bias,
        attention_out_bias=bias,
        qk_norm=True,
        **(experts if any(layer.sparse for layer in layers) else {}),
    )


def _sparse_layers(fields: Fields) -> list[bool]:
    """Which layers have experts: every `decoder_sparse_step`-th but `mlp_only_layers`."""
    count, step = num_layers(fields), fields.integer("decoder_sparse_step", 1)
    plain = fields.raw("mlp_only_layers")
    plain = [] if plain is None else plain
    if not isinstance(plain, list) or not all(type(i) is int and 0 <= i < count for i in plain):
        raise fields.error("mlp_only_layers", f"a list of layers, each from 0 to {count - 1}")
    return [i not in plain and (i + 1) % step == 0 for i in range(count)]
