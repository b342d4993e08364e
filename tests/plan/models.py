"""Models of real sizes for tests of plans, from what their config.json says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from seesaw.families.registry import spec_from_hf
from seesaw.families.spec import ModelSpec

SIZES: dict[str, tuple[int, int, int, int, int, int]] = {
    # hidden, inner, layers, query heads, KV heads, vocabulary
    "tiny": (576, 1536, 30, 9, 3, 49152),
    "8B": (4096, 14336, 32, 32, 8, 128256),
    "15B": (4096, 14336, 64, 32, 8, 128256),
    "34B": (8192, 22016, 48, 64, 8, 32000),
    "70B": (8192, 28672, 80, 64, 8, 32000),
}


def config_of(name: str, **changes: Any) -> dict[str, Any]:
    """A Llama's config.json."""
    hidden, inner, layers, heads, kv_heads, vocabulary = SIZES[name]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 16384,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "float16",
        **changes,
    }


def write_model(folder: Path, config: dict[str, Any]) -> Path:
    """A new folder with nothing but a config.json."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def spec_of(name: str, **changes: Any) -> ModelSpec:
    return spec_from_hf(config_of(name, **changes))
