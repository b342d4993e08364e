"""Qwen2 and Qwen2.5: Llama with biases on q, k and v, and a sliding window on the upper layers
where `use_sliding_window` is set."""

from __future__ import annotations

from seesaw.families.common import decoder_spec, windowed_layers
from seesaw.families.fields import Fields
from seesaw.families.rope import rope_from_hf
from seesaw.families.spec import ModelSpec


def from_hf(fields: Fields, architecture: str) -> ModelSpec:
    fields = fields.over({"num_key_value_heads": 32})
    fields.text("hidden_act", "silu", ("silu",))
    rope = rope_from_hf(fields)
    return decoder_spec(
        fields,
        "qwen2",
        architecture,
        windowed_layers(fields, rope),
        context_rope=rope,
        attention_bias=True,
    )
