"""Gemma 3, text: norms around both blocks and on q and k, local layers with their own RoPE.

Of a model that also sees (Gemma3ForConditionalGeneration) the text part is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seesaw.families.common import decoder_spec, layer_types, num_layers
from seesaw.families.fields import Fields
from seesaw.families.rope import make_rope
from seesaw.families.spec import LayerSpec, ModelSpec, RopeSpec

# Published configs of the larger models leave out what equals transformers' defaults.
DEFAULTS = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 26,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
KINDS = ("sliding_attention", "full_attention")


def from_hf(fields: Fields, architecture: str) -> ModelSpec:
    if (text := fields.mapping("text_config")) is not None:
        inherited = {name: fields.raw(name) for name in ("dtype", "torch_dtype", "eos_token_id")}
        fields = Fields(text, f"{fields.place} (text_config)").over(inherited)
    fields = fields.over(DEFAULTS)
    fields.text("hidden_activation", "gelu_pytorch_tanh", ("gelu_pytorch_tanh",))
    fields.refuse("use_bidirectional_attention", (False,))
    fields.refuse("attn_logit_softcapping", ())
    local_rope, global_rope = _ropes(fields)
    window = fields.integer("sliding_window")
    layers = [
        LayerSpec(window, local_rope) if kind == KINDS[0] else LayerSpec(None, global_rope)
        for kind in _layer_kinds(fields)
    ]
    bias = fields.flag("attention_bias", False)
    return decoder_spec(
        fields,
        "gemma3",
        architecture,
        layers,
        context_rope=global_rope,
        hidden_act="gelu_pytorch_tanh",
        attention_bias=bias,
        attention_out_bias=bias,
        qk_norm=True,
        norm_plus_one=True,
        sandwich_norm=True,
        embed_scale=fields.integer("hidden_size") ** 0.5,
        query_scale=fields.number("query_pre_attn_scalar") ** -0.5,
        logits_soft_cap=fields.optional_number("final_logit_softcapping"),
    )


def _layer_kinds(fields: Fields) -> list[str]:
    count = num_layers(fields)
    kinds = layer_types(fields, count)
    if kinds is not None:
        return kinds
    spelling = "sliding_window_pattern"
    if spelling not in fields and f"_{spelling}" in fields:
        spelling = f"_{spelling}"
    pattern = fields.integer(spelling, 6)
    return [KINDS[(i + 1) % pattern == 0] for i in range(count)]


def _ropes(fields: Fields) -> tuple[RopeSpec, RopeSpec]:
    """RoPE of the local and of the global layers: `rope_parameters` by layer kind, or
    `rope_local_base_freq`, `rope_theta` and a `rope_scaling` that only global layers follow."""
    by_kind: Mapping[str, Any] = fields.mapping("rope_parameters") or {}
    if unknown := [name for name in by_kind if name not in KINDS]:
        raise fields.unsupported(
            "rope_parameters", f"values under {' and '.join(KINDS)}, not {unknown[0]!r}"
        )
    ropes = Fields(by_kind, f"{fields.place} (rope_parameters)")
    local, everywhere = ropes.mapping(KINDS[0]) or {}, ropes.mapping(KINDS[1]) or {}
    everywhere = {**everywhere, **(fields.mapping("rope_scaling") or {})}
    return (
        make_rope(fields, local, fields.number("rope_local_base_freq", 10_000.0)),
        make_rope(fields, everywhere, fields.number("rope_theta", 1_000_000.0)),
    )
