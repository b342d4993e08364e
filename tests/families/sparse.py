"""Tiny configs of the families with experts, as published configs spell them."""

from __future__ import annotations

from typing import Any

_SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "num_experts_per_tok": 2,
    "eos_token_id": 2,
    "rope_theta": 1e6,
}
SPARSE: dict[str, dict[str, Any]] = {
    "mixtral": {
        **_SIZES,
        "architectures": ["MixtralForCausalLM"],
        "intermediate_size": 24,
        "num_local_experts": 3,
    },
    "qwen3_moe": {
        **_SIZES,
        "architectures": ["Qwen3MoeForCausalLM"],
        "head_dim": 32,
        "intermediate_size": 96,
        "moe_intermediate_size": 24,
        "num_experts": 6,
        "norm_topk_prob": True,
    },
}
