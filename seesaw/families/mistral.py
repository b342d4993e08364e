"""Mistral: Llama with a sliding window on every layer, or on none."""

from __future__ import annotations

from seesaw.families.common import decoder_spec, layer_types, num_layers
from seesaw.families.fields import Fields
from seesaw.families.rope import rope_from_hf
from seesaw.families.spec import LayerSpec, ModelSpec

# What transformers takes where a config has no such field; a sliding_window of null means none.
DEFAULTS = {"num_key_value_heads": 8, "sliding_window": 4096}


def from_hf(fields: Fields, architecture: str) -> ModelSpec:
    fields = fields.over(DEFAULTS)
    fields.text("hidden_act", "silu", ("silu",))
    count, rope = num_layers(fields), rope_from_hf(fields)
    window = fields.optional_integer("sliding_window")
    expected = "full_attention" if window is None else "sliding_attention"
    if any(kind != expected for kind in layer_types(fields, count) or ()):
        raise fields.unsupported("layer_types", f"{expected} in every layer")
    return decoder_spec(
        fields,
        "mistral",
        architecture,
        [LayerSpec(window, rope)] * count,
        context_rope=rope,
    )
