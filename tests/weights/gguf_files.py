"""Tiny GGUF files written from transformers models, by the conventions of llama.cpp's converter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

GGUF_ARCH = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3",
             "gemma3": "gemma3"}  # fmt: skip
_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
_GEMMA = {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip


def gguf_name(name: str, family: str) -> str:
    outer = {"model.embed_tokens.weight": "token_embd.weight", "lm_head.weight": "output.weight",
             "model.norm.weight": "output_norm.weight"}  # fmt: skip
    if name in outer:
        return outer[name]
    _, _, layer, *module, part = name.split(".")
    names = _NAMES | _GEMMA if family == "gemma3" else _NAMES
    return f"blk.{layer}.{names['.'.join(module)]}.{part}"


def write_gguf(
    path: Path,
    family: str,
    model: Any,
    *,
    encoding: str = "F32",
    tokenizer: Path | None = None,
    extra: dict[str, Any] | None = None,
    extra_tensors: dict[str, np.ndarray] | None = None,
) -> dict[str, torch.Tensor]:
    """Write `model`; matrices as `encoding`. Returns what a loader must read, in float32.

    `extra` metadata keys are taken as they are; a value of None leaves a key out."""
    config, arch = model.config, GGUF_ARCH[family]
    writer = gguf.GGUFWriter(path, arch)
    metadata = config_metadata(config, arch)
    if tokenizer is not None:
        metadata |= tokenizer_metadata(tokenizer)
    for key, value in (metadata | (extra or {})).items():
        _add(writer, key, value)
    read: dict[str, torch.Tensor] = {}
    tied = config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue
        array = tensor.float().numpy()
        added = np.float32(arch == "gemma3" and name.endswith("norm.weight"))
        heads = rotated_heads(name, config) if arch == "llama" else None
        array = array + added if heads is None else interleave(array, heads)
        kind = gguf.GGMLQuantizationType[encoding if array.ndim == 2 else "F32"]
        stored = gguf.quants.quantize(array, kind)
        writer.add_tensor(gguf_name(name, family), stored, raw_dtype=kind)
        values = gguf.quants.dequantize(stored, kind)
        values = values - added if heads is None else deinterleave(values, heads)
        read[name] = torch.from_numpy(np.array(values)).view(tensor.shape)
    for name, array in (extra_tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if tied:
        read["lm_head.weight"] = read["model.embed_tokens.weight"]
    return read


def config_metadata(config: Any, arch: str) -> dict[str, Any]:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    metadata: dict[str, Any] = {
        f"{arch}.context_length": config.max_position_embeddings,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.block_count": config.num_hidden_layers,
        f"{arch}.attention.head_count": heads,
        f"{arch}.attention.head_count_kv": kv_heads,
        f"{arch}.attention.key_length": head_dim,
        f"{arch}.attention.value_length": head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        f"{arch}.rope.freq_base": float(rope["rope_theta"]),
    }
    if arch == "gemma3":
        metadata["gemma3.attention.sliding_window"] = config.sliding_window
        kinds = [kind == "sliding_attention" for kind in config.layer_types]
        metadata["gemma3.attention.sliding_window_pattern"] = kinds
    return metadata


def rotated_heads(name: str, config: Any) -> int | None:
    """How many heads a tensor of q or k has, whose rows ggml orders its own way; else None."""
    if ".q_proj." in name:
        return config.num_attention_heads
    return config.num_key_value_heads if ".k_proj." in name else None


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Each head's rows 0, D/2, 1, D/2 + 1, .. : the order of ggml's rotary embedding for llama."""
    out = np.empty_like(rows)
    size = len(rows) // heads
    for head in range(heads):
        for i in range(size):
            source = i // 2 + (i % 2) * size // 2
            out[head * size + i] = rows[head * size + source]
    return out


def deinterleave(rows: np.ndarray, heads: int) -> np.ndarray:
    order = interleave(np.arange(len(rows)), heads)
    out = np.empty_like(rows)
    out[order] = rows
    return out


def tokenizer_metadata(path: Path) -> dict[str, Any]:
    """Of a byte-level tokenizer.json, as the converter writes it."""
    parsed = json.loads((path / "tokenizer.json").read_text())
    vocab = {**parsed["model"]["vocab"], **{t["content"]: t["id"] for t in parsed["added_tokens"]}}
    special = {t["content"] for t in parsed["added_tokens"] if t["special"]}
    tokens = sorted(vocab, key=lambda token: vocab[token])
    settings = json.loads((path / "tokenizer_config.json").read_text())
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in parsed["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": vocab[settings["bos_token"]],
        "tokenizer.ggml.eos_token_id": vocab[settings["eos_token"]],
        "tokenizer.chat_template": settings["chat_template"],
    }


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
              str: writer.add_string, list: writer.add_array}  # fmt: skip
    if value is not None:
        adders[type(value)](key, value)
