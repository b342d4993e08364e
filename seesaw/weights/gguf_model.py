"""What a GGUF file says in the words of Hugging Face: an HF-style config and HF tensor names.

No torch. The config then goes through the same family file as a `config.json`, so that every check
and every default exists once. Sources of the conventions: llama.cpp's converter (q and k rows of
arch llama interleaved, 1 added to Gemma's norms, llama3 factors as `rope_freqs.weight`).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from typing import Any

from seesaw.errors import ModelError
from seesaw.families.spec import ModelSpec
from seesaw.weights.gguf_file import GGUFFile
from seesaw.weights.stored import PLAIN, StoredTensor

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}
_FIELDS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
# Keys that change the mathematics, with the value that changes nothing.
_REFUSED = {
    "expert_count": 0, "use_parallel_residual": False, "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0, "attn_logit_softcapping": 0.0, "logit_scale": 1.0,
    "embedding_scale": 1.0, "residual_scale": 1.0, "attention.causal": True,
    "attention.scale": None, "attention.shared_kv_layers": 0, "attention.temperature_length": 0,
    "rope.scaling.attn_factor": 1.0, "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_log_multiplier": None,
}  # fmt: skip
_MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA_MODULES = _MODULES | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
ROPE_FREQS = "rope_freqs.weight"
# llama3 scaling as published: (low_freq_factor, high_freq_factor, original context).
_LLAMA3 = (1.0, 4.0, 8192)


def architecture(file: GGUFFile) -> str:
    name = file.metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise ModelError(
            f"{file.path}: got GGUF architecture {name!r}, expected one of "
            f"{', '.join(ARCHITECTURES)}. Use one of these, or the model's safetensors version if "
            "seesaw has its family."
        )
    if file.metadata.get("split.count", 1) not in (0, 1):
        raise ModelError(
            f"{file.path}: one of {file.metadata['split.count']} parts of a split model, expected "
            "one file. Join the parts: llama-gguf-split --merge FIRST_PART OUTPUT."
        )
    return str(name)


def hf_config(file: GGUFFile) -> dict[str, Any]:
    """An HF-style config of the metadata; what it cannot express raises ModelError."""
    arch = architecture(file)
    keys = {
        key.removeprefix(f"{arch}."): _shortest(value)
        for key, value in file.metadata.items()
        if key.startswith(f"{arch}.")
    }
    for key, neutral in _REFUSED.items():
        if (value := keys.get(key)) is not None and value != neutral:
            raise ModelError(
                f"{file.path}: got {arch}.{key}={value!r}, expected "
                f"{'none' if neutral is None else repr(neutral)}: this changes the model's "
                "mathematics and is not supported. Use the model's safetensors version if seesaw "
                "has its family."
            )
    config: dict[str, Any] = {hf: keys[key] for key, hf in _FIELDS.items() if key in keys}
    config |= {
        "architectures": [ARCHITECTURES[arch]],
        "dtype": "bfloat16",
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "eos_token_id": file.metadata.get("tokenizer.ggml.eos_token_id"),
    }
    if (embedding := file.tensors.get("token_embd.weight")) is not None:
        config["vocab_size"] = embedding.shape[0]
    for key in ("attention.value_length", "rope.dimension_count"):
        head_dim = config.get("head_dim") or _head_dim(config)
        if key in keys and head_dim and keys[key] != head_dim:
            raise ModelError(
                f"{file.path}: got {arch}.{key}={keys[key]!r}, expected the key length "
                f"{head_dim}. Heads of other forms are not supported."
            )
    if arch == "gemma3":
        config |= _gemma3(keys, config)
    else:
        config |= _bias_flags(file)
        if "attention.sliding_window" in keys:
            config |= _window(arch, keys["attention.sliding_window"], config)
    config["rope_scaling"] = _rope_scaling(file, keys, config)
    return config


def _shortest(value: Any) -> Any:
    """The decimal that a float32 was made from: 9.99999974e-06 -> 1e-05."""
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    for digits in range(6, 10):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", min(max(short, -3e38), 3e38)) == struct.pack("<f", value):
            return short
    return value


def _head_dim(config: dict[str, Any]) -> int | None:
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        return hidden // heads
    return None


def _bias_flags(file: GGUFFile) -> dict[str, Any]:
    return {
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in file.tensors,
    }


def _window(arch: str, window: Any, config: dict[str, Any]) -> dict[str, Any]:
    if arch == "llama":  # llama.cpp files Mistral under llama
        return {"architectures": ["MistralForCausalLM"], "sliding_window": window}
    return {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0}


def _gemma3(keys: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """What llama.cpp knows of Gemma 3 by heart or stores under other keys."""
    found: dict[str, Any] = {
        "rope_local_base_freq": keys.get("rope.freq_base_swa", 10_000.0),
        "final_logit_softcapping": keys.get("final_logit_softcapping"),
        "query_pre_attn_scalar": config.get("head_dim"),
    }
    if config.get("num_hidden_layers") == 62:  # the 27B model scales by hidden size per head
        found["query_pre_attn_scalar"] = _head_dim(config)
    if "attention.sliding_window" in keys:
        found["sliding_window"] = keys["attention.sliding_window"]
    pattern = keys.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        kinds = {True: "sliding_attention", False: "full_attention"}
        found["layer_types"] = [kinds[bool(slides)] for slides in pattern]
    elif pattern is not None:
        found["sliding_window_pattern"] = pattern
    return found


def _rope_scaling(
    file: GGUFFile, keys: dict[str, Any], config: dict[str, Any]
) -> dict[str, Any] | None:
    kind = keys.get("rope.scaling.type", "none")
    if ROPE_FREQS in file.tensors:
        if kind not in ("none", "llama3"):
            raise ModelError(f"{file.path}: got {ROPE_FREQS} and rope scaling {kind!r}, not both.")
        return _llama3_scaling(file, config)
    if kind == "none":
        # Before scaling types there was only a linear factor.
        factor = keys.get("rope.scale_linear", 1.0)
        return {"rope_type": "linear", "factor": factor} if factor != 1.0 else None
    names = {
        "factor": "factor",
        "original_context_length": "original_max_position_embeddings",
        "yarn_beta_fast": "beta_fast",
        "yarn_beta_slow": "beta_slow",
    }
    used = names if kind == "yarn" else {"factor": "factor"}
    scaling = {
        hf: keys[f"rope.scaling.{key}"] for key, hf in used.items() if f"rope.scaling.{key}" in keys
    }
    return {"rope_type": kind, **scaling}


def _llama3_scaling(file: GGUFFile, config: dict[str, Any]) -> dict[str, Any] | None:
    """llama3 scaling recovered from the factor of each frequency, which is all that GGUF keeps."""
    tensor, theta = file.tensors[ROPE_FREQS], config.get("rope_theta", 10_000.0)
    head_dim = config.get("head_dim") or _head_dim(config)
    good = tensor.encoding == "F32" and isinstance(theta, float) and theta > 1
    if good and isinstance(head_dim, int) and tensor.shape == (head_dim // 2,):
        with file.path.open("rb") as data:
            data.seek(tensor.offset)
            stored = struct.unpack(f"<{head_dim // 2}f", data.read(tensor.nbytes))
        if all(value == 1.0 for value in stored):
            return None
        low, high, original = _LLAMA3
        factor = float(f"{max(1.0, *stored):.5g}")  # published ones are round numbers
        expected = _llama3_factors(factor, low, high, original, theta, head_dim)
        if all(abs(a - b) <= 1e-4 * abs(b) for a, b in zip(stored, expected, strict=True)):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    raise ModelError(
        f"{file.path}: got a {ROPE_FREQS} that is not Llama 3's scaling (low_freq_factor 1, "
        "high_freq_factor 4, original context 8192), which is the only kind supported in GGUF. Use "
        "the model's safetensors version."
    )


def _llama3_factors(
    factor: float, low: float, high: float, original: int, theta: float, head_dim: int
) -> Iterable[float]:
    """What each frequency is divided by."""
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (i / head_dim)
        smooth = min(1.0, max(0.0, (original / wavelength - low) / (high - low)))
        yield 1.0 / ((1.0 - smooth) / factor + smooth)


def hf_tensors(file: GGUFFile, spec: ModelSpec) -> list[StoredTensor]:
    """The tensors under HF names; those without one keep their own."""
    arch = architecture(file)
    modules = _GEMMA_MODULES if arch == "gemma3" else _MODULES
    found = []
    for tensor in file.tensors.values():
        if tensor.name == ROPE_FREQS:
            continue
        name = _hf_name(tensor.name, modules)
        interleaved = arch == "llama" and name.split(".")[-2] in ("q_proj", "k_proj")
        found.append(
            StoredTensor(
                name,
                tensor.shape,
                tensor.encoding,
                file.path,
                tensor.offset,
                tensor.nbytes,
                interleaved_head_dim=spec.head_dim if interleaved else None,
                plus_one=spec.norm_plus_one and name.endswith("norm.weight"),
            )
        )
    return found


def check_encodings(tensors: Mapping[str, StoredTensor], wanted: Iterable[str]) -> None:
    """Raise ModelError where a tensor of `wanted` has an encoding that cannot be undone."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

    readable = dict.fromkeys(PLAIN, True)
    for name in wanted:
        stored = tensors[name]
        if stored.encoding not in readable:
            encoding = GGMLQuantizationType[stored.encoding]
            block = np.zeros((1, GGML_QUANT_SIZES[encoding][1]), np.uint8)
            try:
                quants.dequantize(block, encoding)
                readable[stored.encoding] = True
            except NotImplementedError:
                readable[stored.encoding] = False
        if not readable[stored.encoding] or (
            len(stored.shape) < 2 and stored.encoding not in PLAIN
        ):
            raise ModelError(
                f"{stored.file}: tensor {name} with {len(stored.shape)} dims is stored as "
                f"{stored.encoding}, which cannot be de-quantised. Use another quantisation of the "
                "model, such as Q8_0, Q4_K or BF16."
            )


def _hf_name(name: str, modules: dict[str, str]) -> str:
    if name in _OUTER:
        return _OUTER[name]
    match name.split("."):
        case ["blk", layer, module, part] if module in modules:
            return f"model.layers.{layer}.{modules[module]}.{part}"
    return name


def sampling_defaults(file: GGUFFile) -> dict[str, Any]:
    """The recommended sampling that newer files carry, as generation_config.json has it."""
    names = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
    found = {hf: file.metadata.get(f"general.sampling.{key}") for key, hf in names.items()}
    return {name: _shortest(value) for name, value in found.items() if value is not None}
