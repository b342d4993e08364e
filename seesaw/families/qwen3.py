"""Qwen3 (dense): no biases, RMSNorm on each head of q and k, head_dim apart from hidden_size."""

from __future__ import annotations

from seesaw.families.common import decoder_spec, windowed_layers
from seesaw.families.fields import Fields
from seesaw.families.rope import rope_from_hf
from seesaw.families.spec import ModelSpec


def from_hf(fields: Fields, architecture: str) -> ModelSpec:
    fields = fields.over({"num_key_value_heads": 32, "head_dim": 128})
    fields.text("hidden_act", "silu", ("silu",))
    rope = rope_from_hf(fields)
    bias = fields.flag("attention_bias", False)
    return decoder_spec(
        fields,
        "qwen3",
        architecture,
        windowed_layers(fields, rope),
        context_rope=rope,
        attention_bias=bias,
        attention_out_bias=bias,
        qk_norm=True,
    )
