"""Trains a small Qwen3 with experts on the texts that come with Python, for a few minutes, so that
its router prefers some experts to others; random weights do not.

usage: python examples/train_tiny_moe.py FOLDER [--steps N] [--seed N] [--text-bytes N]

FOLDER gets a checkpoint that seesaw and transformers load: 78 million parameters, of which a token
uses 7, and 151 MB of experts in bfloat16, more than a processor's caches hold. The router learns
with the balancing loss that Qwen3-MoE's has, at its weight. Nothing is downloaded, and the same
seed gives the same checkpoint on the same machine. Needs transformers.
"""

from __future__ import annotations

import argparse
import json
import math
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

VOCAB_SIZE = 4096
END = "<|endoftext|>"
SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "moe_intermediate_size": 256,
    "num_experts": 64,
    "num_experts_per_tok": 4,
    "router_aux_loss_coef": 0.001,
}
SEQUENCES, LENGTH = 8, 256
"""Of a training step."""
LEARNING_RATE, WARM_UP = 1e-3, 20
HELD_OUT = 16
"""Sequences at the end of the text that are not trained on."""


def texts(most_bytes: int) -> str:
    """The language reference that `help()` shows, and sources of the standard library by name."""
    from pydoc_data.topics import topics

    parts = [topics[name] for name in sorted(topics)]
    size = sum(map(len, parts))
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        if size >= most_bytes:
            break
        parts.append(path.read_text(encoding="utf-8"))
        size += len(parts[-1])
    return "\n\n".join(parts)[:most_bytes]


def train_tokenizer(text: str, folder: Path) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.split("\n\n"), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    return tokenizer


def experts_in_turn(
    self: Any, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The experts of one layer: hidden [tokens, hidden], chosen and weights [tokens, experts of a
    token]; [tokens, hidden]. Four times as fast in training as taking `weight[expert]` for each,
    whose gradient is as large as that of all experts."""
    order = chosen.flatten().argsort(stable=True)
    counts = torch.bincount(chosen.flatten(), minlength=self.num_experts).tolist()
    rows_of = hidden[order // chosen.shape[-1]].split(counts)
    answers = []
    for rows, gate_up, down in zip(
        rows_of, self.gate_up_proj.unbind(), self.down_proj.unbind(), strict=True
    ):
        gate, up = F.linear(rows, gate_up).chunk(2, dim=-1)
        answers.append(F.linear(self.act_fn(gate) * up, down))
    weighted = torch.cat(answers) * weights.flatten()[order, None]
    return weighted[order.argsort()].view(*chosen.shape, -1).sum(dim=1)


ALL_EXPERTS_FUNCTIONS.register("in_turn", experts_in_turn)


def make_model(seed: int) -> Qwen3MoeForCausalLM:
    torch.manual_seed(seed)
    config = Qwen3MoeConfig(
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        norm_topk_prob=True,
        experts_implementation="in_turn",
        bos_token_id=0,
        eos_token_id=0,
        **SIZES,
    )
    return Qwen3MoeForCausalLM(config)


def batches(tokens: torch.Tensor, seed: int) -> Iterator[torch.Tensor]:
    """[SEQUENCES, LENGTH] each, from anywhere in the text but its end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(tokens) - LENGTH, (SEQUENCES,), generator=generator)
        yield torch.stack([tokens[start : start + LENGTH] for start in starts])


def train(model: Qwen3MoeForCausalLM, tokens: torch.Tensor, steps: int, seed: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    model.train()
    began_s = time.perf_counter()
    for step, batch in zip(range(1, steps + 1), batches(tokens, seed), strict=False):
        rest = 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(step / WARM_UP, 0.1 + 0.9 * rest)
        # With the logits of the router, `loss` has the share that balances experts.
        loss = model(input_ids=batch, labels=batch, output_router_logits=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0 or step in (1, steps):
            taken_s = time.perf_counter() - began_s
            print(f"step {step} of {steps}: loss {loss.item():.3f}, {taken_s:.0f} s", flush=True)
    model.eval()


@torch.no_grad()
def expert_loads(model: Qwen3MoeForCausalLM, tokens: torch.Tensor) -> list[torch.Tensor]:
    """For each layer the share of all choices that each expert got, [experts], over `tokens`."""
    batch = tokens.reshape(-1, LENGTH)
    logits = model(input_ids=batch, output_router_logits=True).router_logits
    config = model.config
    shares = []
    for layer in logits:
        chosen = layer.topk(config.num_experts_per_tok, dim=-1).indices.flatten()
        shares.append(torch.bincount(chosen, minlength=config.num_experts) / chosen.numel())
    return shares


def entropy(shares: torch.Tensor) -> float:
    """Over that of equal shares: 1 where all experts are chosen alike."""
    some = shares[shares > 0]
    return float(-(some * some.log()).sum() / math.log(len(shares)))


def make(folder: Path, steps: int, seed: int, text_bytes: int) -> list[float]:
    """Writes the checkpoint; the entropy of the experts' loads in each layer."""
    folder.mkdir(parents=True, exist_ok=True)
    text = texts(text_bytes)
    tokenizer = train_tokenizer(text, folder)
    tokens = torch.tensor(tokenizer.encode(text).ids)
    held_out = HELD_OUT * LENGTH
    if len(tokens) < 2 * held_out:
        raise SystemExit(
            f"--text-bytes {text_bytes}: {len(tokens)} tokens, expected {2 * held_out} or more. "
            "Give more bytes."
        )
    model = make_model(seed)
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"{size / 1e6:.1f} million parameters, {len(tokens):,} tokens", flush=True)
    train(model, tokens[:-held_out], steps, seed)
    found = []
    for layer, shares in enumerate(expert_loads(model, tokens[-held_out:])):
        found.append(entropy(shares))
        busiest = float(shares.max()) * len(shares)
        print(
            f"layer {layer}: entropy of expert loads {found[-1]:.3f} (1 = all alike), the busiest "
            f"has {busiest:.1f} times the mean"
        )
    model.save_pretrained(folder)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the checkpoint goes")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text-bytes", type=int, default=3_000_000)
    given = parser.parse_args()
    if given.steps < 1:
        parser.error(f"--steps {given.steps}: expected 1 or more")
    make(given.folder, given.steps, given.seed, given.text_bytes)
    print(f"written: {given.folder}")


if __name__ == "__main__":
    main()
