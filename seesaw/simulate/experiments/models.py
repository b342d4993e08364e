"""The models of the papers' evaluations, by the sizes in their published configs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from seesaw.families.registry import spec_from_hf
from seesaw.families.spec import ModelSpec

_LLAMA: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 32768,
    "torch_dtype": "float16",
}
_SIZES: Mapping[str, Mapping[str, Any]] = {
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
    # SARATHI's: huggyllama/llama-13b, and GPT-3 (arXiv 2005.14165, table 2.1)
    "llama-13b": {
        "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
        "num_attention_heads": 40, "num_key_value_heads": 40, "vocab_size": 32000,
    },
    "llama-33b": {
        "hidden_size": 6656, "intermediate_size": 17920, "num_hidden_layers": 60,
        "num_attention_heads": 52, "num_key_value_heads": 52, "vocab_size": 32000,
    },
    "gpt3": {
        "hidden_size": 12288, "intermediate_size": 32768, "num_hidden_layers": 96,
        "num_attention_heads": 96, "num_key_value_heads": 96, "vocab_size": 50257,
    },
    # Sarathi-Serve's: mistralai/Mistral-7B-v0.1, 01-ai/Yi-34B, tiiuae/falcon-180B
    "mistral-7b": {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 4096,
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000,
    },
    "yi-34b": {
        "hidden_size": 7168, "intermediate_size": 20480, "num_hidden_layers": 60,
        "num_attention_heads": 56, "num_key_value_heads": 8, "vocab_size": 64000,
    },
    "falcon-180b": {
        "hidden_size": 14848, "intermediate_size": 39596, "num_hidden_layers": 80,
        "num_attention_heads": 232, "num_key_value_heads": 8, "vocab_size": 65024,
    },
    # Layered prefill's: Qwen/Qwen3-30B-A3B; and its dense counterpart, Qwen/Qwen3-8B
    "qwen3-30b-a3b": {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "head_dim": 128,
        "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48,
        "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 151936,
        "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
    },
    "qwen3-8b": {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 128,
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 151936,
    },
    # Nexus': Qwen/Qwen2.5-3B; its Llama 3.1 8B has the sizes of llama3-8b
    "qwen2.5-3b": {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": True,
        "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 151936,
    },
}  # fmt: skip
"""GPT-3 and Falcon have two matrices in an MLP, all families here three: those MLPs are two thirds
as wide instead, of as many weights and operations."""


@cache
def model(name: str) -> ModelSpec:
    """By its name above, in float16."""
    return spec_from_hf({**_LLAMA, **_SIZES[name]}, name)
