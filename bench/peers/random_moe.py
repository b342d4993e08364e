"""A Qwen3 with experts, of random weights, whose experts are more than a processor's caches hold: 6
layers of 64 experts, 4 for a token, 0.96 billion parameters.

usage: random_moe.py OUT_DIR --tokenizer DIR [--experts 64] [--per-token 4] [--hidden 1024]
           [--inner 768] [--layers 6] [--seed 0]
    DIR: a model whose tokenizer has at most 49152 tokens, such as SmolLM2's

Its router is as it begins, so that it prefers no expert over all tokens; a trained one comes of
`examples/train_tiny_moe.py`.
"""

import argparse
import shutil
from pathlib import Path

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--per-token", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--inner", type=int, default=768, help="of each expert")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    config = Qwen3MoeConfig(
        vocab_size=49152, hidden_size=args.hidden, intermediate_size=args.inner,
        num_hidden_layers=args.layers, num_attention_heads=16, num_key_value_heads=8,
        head_dim=args.hidden // 16, moe_intermediate_size=args.inner, num_experts=args.experts,
        num_experts_per_tok=args.per_token, decoder_sparse_step=1, norm_topk_prob=True,
        max_position_embeddings=8192, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        torch_dtype="bfloat16",
    )  # fmt: skip
    Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(args.out)
    for file in args.tokenizer.glob("tokenizer*"):
        shutil.copy(file, args.out)


if __name__ == "__main__":
    main()
