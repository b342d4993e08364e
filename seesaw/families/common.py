"""What all families share: sizes, layer kinds and the list of a checkpoint's tensors.

Standard library only. A family file says what is its own; nothing here asks which family it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, cast

from seesaw.families.fields import Fields
from seesaw.families.rope import context_length
from seesaw.families.sparse import PLAIN_NAMES, ExpertNames, expert_params
from seesaw.families.spec import LayerSpec, ModelSpec, ParamSpec, RopeSpec, SplitDim

MAX_LAYERS = 4096
DTYPES = ("float32", "bfloat16", "float16")


def decoder_spec(
    fields: Fields,
    family: str,
    architecture: str,
    layers: Sequence[LayerSpec],
    *,
    context_rope: RopeSpec,
    expert_names: ExpertNames = PLAIN_NAMES,
    **features: Any,
) -> ModelSpec:
    """A ModelSpec of the fields that all families have, and of `features`, named as in ModelSpec.
    `context_rope` is the RoPE of the layers that see the whole context, `expert_names` are those of
    sparse layers' tensors."""
    hidden_size, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    num_kv_heads = fields.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise fields.error("num_key_value_heads", f"a divisor of num_attention_heads={num_heads}")
    if "head_dim" not in fields and hidden_size % num_heads:
        raise fields.error("head_dim", f"one: {hidden_size=} does not divide by {num_heads} heads")
    head_dim = fields.integer("head_dim", hidden_size // num_heads)
    if head_dim % 2:
        raise fields.error("head_dim", "an even number (rotary embeddings turn pairs)")
    dtype_name = "dtype" if "dtype" in fields else "torch_dtype"
    spec = ModelSpec(
        family=family,
        architecture=architecture,
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_hidden_layers=len(layers),
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=fields.integer("vocab_size"),
        max_position_embeddings=context_length(fields, context_rope),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        torch_dtype=cast(
            Literal["float32", "bfloat16", "float16"], fields.text(dtype_name, "float32", DTYPES)
        ),
        layers=tuple(layers),
        eos_token_ids=fields.token_ids("eos_token_id"),
        **features,
    )
    return with_params(spec, expert_names)


def num_layers(fields: Fields) -> int:
    return fields.integer("num_hidden_layers", high=MAX_LAYERS)


def layer_types(fields: Fields, count: int) -> list[str] | None:
    """`layer_types` of the config, checked; None where it is absent."""
    kinds, known = fields.raw("layer_types"), ("full_attention", "sliding_attention")
    if kinds is None:
        return None
    if not isinstance(kinds, list) or len(kinds) != count or not all(k in known for k in kinds):
        raise fields.unsupported("layer_types", f"a list of {count} of {' or '.join(known)}")
    return kinds


def windowed_layers(fields: Fields, rope: RopeSpec) -> list[LayerSpec]:
    """Layers of Qwen: full attention, or from `max_window_layers` on a sliding window."""
    count = num_layers(fields)
    window = None
    if fields.flag("use_sliding_window", False):
        window = fields.integer("sliding_window", 4096)
    kinds = layer_types(fields, count)
    if kinds is None:
        first = fields.integer("max_window_layers", 28, low=0)
        sliding = [window is not None and i >= first for i in range(count)]
    else:
        sliding = [kind == "sliding_attention" for kind in kinds]
    if any(sliding) and window is None:
        raise fields.error("layer_types", "no sliding_attention where use_sliding_window is false")
    return [LayerSpec(window if slides else None, rope) for slides in sliding]


def with_params(spec: ModelSpec, expert_names: ExpertNames = PLAIN_NAMES) -> ModelSpec:
    """`spec` with the list of its tensors under HF's names."""
    params = [ParamSpec("model.embed_tokens.weight", (spec.vocab_size, spec.hidden_size), None,
                        "vocab")]  # fmt: skip
    for layer in range(spec.num_hidden_layers):
        params += _layer_params(spec, layer)
        if spec.layers[layer].sparse:
            params += expert_params(spec, layer, expert_names)
    params.append(ParamSpec("model.norm.weight", (spec.hidden_size,), None))
    if not spec.tie_word_embeddings:
        params.append(
            ParamSpec("lm_head.weight", (spec.vocab_size, spec.hidden_size), None, "vocab")
        )
    return replace(spec, params=tuple(params))


def _layer_params(spec: ModelSpec, layer: int) -> list[ParamSpec]:
    found: list[ParamSpec] = []

    def add(name: str, *shape: int, split: SplitDim = "none", dim: int = 0) -> None:
        found.append(ParamSpec(f"model.layers.{layer}.{name}", shape, layer, split, dim))

    def linear(name: str, out: int, size: int, split: SplitDim, dim: int, bias: bool) -> None:
        add(f"{name}.weight", out, size, split=split, dim=dim)
        if bias:  # of a row-parallel matrix (dim 1) it is added once: not cut
            add(f"{name}.bias", out, split=split if dim == 0 else "none")

    hidden, mlp = spec.hidden_size, spec.intermediate_size
    q_size, kv_size = (
        heads * spec.head_dim for heads in (spec.num_attention_heads, spec.num_key_value_heads)
    )
    add("input_layernorm.weight", hidden)
    linear("self_attn.q_proj", q_size, hidden, "heads", 0, spec.attention_bias)
    linear("self_attn.k_proj", kv_size, hidden, "kv_heads", 0, spec.attention_bias)
    linear("self_attn.v_proj", kv_size, hidden, "kv_heads", 0, spec.attention_bias)
    linear("self_attn.o_proj", hidden, q_size, "heads", 1, spec.attention_out_bias)
    if spec.qk_norm:
        add("self_attn.q_norm.weight", spec.head_dim)
        add("self_attn.k_norm.weight", spec.head_dim)
    add("post_attention_layernorm.weight", hidden)
    if spec.sandwich_norm:
        add("pre_feedforward_layernorm.weight", hidden)
        add("post_feedforward_layernorm.weight", hidden)
    if spec.layers[layer].sparse:
        return found
    linear("mlp.gate_proj", mlp, hidden, "mlp", 0, spec.mlp_bias)
    linear("mlp.up_proj", mlp, hidden, "mlp", 0, spec.mlp_bias)
    linear("mlp.down_proj", hidden, mlp, "mlp", 1, spec.mlp_bias)
    return found
