"""Llama 1 to 3.x and what shares its mathematics (SmolLM2, TinyLlama, Yi, ..)."""

from __future__ import annotations

from seesaw.families.common import decoder_spec, num_layers
from seesaw.families.fields import Fields
from seesaw.families.rope import rope_from_hf
from seesaw.families.spec import LayerSpec, ModelSpec


def from_hf(fields: Fields, architecture: str) -> ModelSpec:
    fields.text("hidden_act", "silu", ("silu",))
    rope = rope_from_hf(fields)
    bias = fields.flag("attention_bias", False)
    return decoder_spec(
        fields,
        "llama",
        architecture,
        [LayerSpec(None, rope)] * num_layers(fields),
        context_rope=rope,
        attention_bias=bias,
        attention_out_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
    )
