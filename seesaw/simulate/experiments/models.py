"""The models of the paper's evaluation, by the sizes in their published configs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seesaw.families.registry import spec_from_hf
from seesaw.families.spec import ModelSpec

_LLAMA: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 16384,
    "torch_dtype": "float16",
}
_SIZES: Mapping[str, Mapping[str, int]] = {
    # elinas/Llama-3-15B-Instruct-zeroed
    "llama3-15b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 64,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    },
    # codellama/CodeLlama-34b-hf
    "codellama-34b": {
        "hidden_size": 8192, "intermediate_size": 22016, "num_hidden_layers": 48,
        "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 32000,
    },
    # meta-llama/Llama-2-70b-hf
    "llama2-70b": {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 32000,
    },
    # meta-llama/Meta-Llama-3-8B, of vLLM's own profile of its overhead
    "llama3-8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    },
}  # fmt: skip


def model(name: str) -> ModelSpec:
    """`llama3-15b`, `codellama-34b`, `llama2-70b` or `llama3-8b`, in float16."""
    return spec_from_hf({**_LLAMA, **_SIZES[name]}, name)
