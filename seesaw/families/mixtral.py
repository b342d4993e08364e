"""Mixtral: Mistral with a router and experts in place of every MLP. `intermediate_size` is the
width of one expert."""

from __future__ import annotations

from seesaw.families.common import decoder_spec, num_layers
from seesaw.families.fields import Fields
from seesaw.families.rope import rope_from_hf
from seesaw.families.sparse import ExpertNames, expert_features
from seesaw.families.spec import LayerSpec, ModelSpec

# What transformers takes where a config has no such field.
DEFAULTS = {"num_key_value_heads": 8, "rms_norm_eps": 1e-5}
THETA = 1e6
NAMES = ExpertNames("block_sparse_moe", gate="w1", up="w3", down="w2")


def from_hf(fields: Fields, architecture: str) -> ModelSpec:
    fields = fields.over(DEFAULTS)
    fields.text("hidden_act", "silu", ("silu",))
    rope = rope_from_hf(fields, THETA)
    layer = LayerSpec(fields.optional_integer("sliding_window"), rope, sparse=True)
    return decoder_spec(
        fields,
        "mixtral",
        architecture,
        [layer] * num_layers(fields),
        context_rope=rope,
        expert_names=NAMES,
        moe_intermediate_size=fields.integer("intermediate_size"),
        norm_topk_prob=True,
        **expert_features(fields, count="num_local_experts", default_count=8, default_per_token=2),
    )
