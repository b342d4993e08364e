"""A Llama of random weights that two ranks share well: 12 layers, 16 query and 8 KV heads, tied
embedding of 49152 rows; 192 million parameters as it is, 667 million with hidden 2048. With larger
heads than its hidden size asks for it has more KV for as much computing.

usage: random_llama.py OUT_DIR --tokenizer DIR [--hidden 1024] [--head-dim N] [--seed 0]
    DIR: a model whose tokenizer has at most 49152 tokens, such as SmolLM2's
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

LAYERS, HEADS, KV_HEADS, VOCAB = 12, 16, 8, 49152
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCAB,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}


def inner_size(hidden: int) -> int:
    """Of the MLP: 11/4 of the hidden size."""
    return hidden * 11 // 4


def weights(hidden: int, head_dim: int, seed: int) -> dict[str, torch.Tensor]:
    inner = inner_size(hidden)
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        values = torch.randn(rows, columns, generator=generator) * columns**-0.5
        return values.to(torch.bfloat16)

    ones = torch.ones(hidden, dtype=torch.bfloat16)
    found = {"model.embed_tokens.weight": matrix(VOCAB, hidden), "model.norm.weight": ones.clone()}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        found |= {
            name + "self_attn.q_proj.weight": matrix(HEADS * head_dim, hidden),
            name + "self_attn.k_proj.weight": matrix(KV_HEADS * head_dim, hidden),
            name + "self_attn.v_proj.weight": matrix(KV_HEADS * head_dim, hidden),
            name + "self_attn.o_proj.weight": matrix(hidden, HEADS * head_dim),
            name + "mlp.gate_proj.weight": matrix(inner, hidden),
            name + "mlp.up_proj.weight": matrix(inner, hidden),
            name + "mlp.down_proj.weight": matrix(hidden, inner),
            name + "input_layernorm.weight": ones.clone(),
            name + "post_attention_layernorm.weight": ones.clone(),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--head-dim", type=int, help="by default hidden / 16")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    head_dim = args.head_dim or args.hidden // HEADS
    args.out.mkdir(parents=True, exist_ok=True)
    tensors = weights(args.hidden, head_dim, args.seed)
    save_file(tensors, args.out / "model.safetensors", metadata={"format": "pt"})
    sizes = {
        "hidden_size": args.hidden,
        "intermediate_size": inner_size(args.hidden),
        "head_dim": head_dim,
    }
    (args.out / "config.json").write_text(json.dumps(CONFIG | sizes, indent=2) + "\n")
    for file in args.tokenizer.glob("tokenizer*"):
        shutil.copy(file, args.out)


if __name__ == "__main__":
    main()
