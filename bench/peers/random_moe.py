"""A Qwen3 with experts, of random weights, far more of them than a processor's caches hold:
Qwen3-30B-A3B at half its width and a sixth of its depth, 8 layers of 128 experts, 8 for a token,
1.3 billion parameters.

usage: random_moe.py OUT_DIR --tokenizer DIR [--experts 128] [--per-token 8] [--hidden 1024]
           [--inner 384] [--layers 8] [--seed 0]
    DIR: a model whose tokenizer has at most 49152 tokens, such as SmolLM2's

Embeddings are drawn fifty times as large as the other weights. A hidden state is then mostly that
of its own token, so that different tokens choose different experts, and a text's all of them about
alike, as the balancing losses of real models see to. With equal scales attention makes the states
of a text alike, and they choose the same few. A trained router comes of
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
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--per-token", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--inner", type=int, default=384, help="of each expert")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    config = Qwen3MoeConfig(
        vocab_size=49152, hidden_size=args.hidden, intermediate_size=args.inner,
        num_hidden_layers=args.layers, num_attention_heads=16, num_key_value_heads=2,
        head_dim=args.hidden // 16, moe_intermediate_size=args.inner, num_experts=args.experts,
        num_experts_per_tok=args.per_token, decoder_sparse_step=1, norm_topk_prob=True,
        max_position_embeddings=8192, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
        torch_dtype="bfloat16",
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config)
    torch.nn.init.normal_(model.model.embed_tokens.weight)
    model.to(torch.bfloat16).save_pretrained(args.out)
    for file in args.tokenizer.glob("tokenizer*"):
        shutil.copy(file, args.out)


if __name__ == "__main__":
    main()
