"""The work of `seesaw bench throughput` through transformers; prints one JSON line.

A static batch by `generate`, or with --continuous the continuous batching of `generate_batch`.
"""

import argparse
import contextlib
import json
import random
import time

import torch
from transformers import AutoModelForCausalLM, GenerationConfig


def parse_arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", required=True, help="directory with safetensors")
    p.add_argument("--num-prompts", type=int, default=64)
    p.add_argument("--input-len", type=int, default=256)
    p.add_argument("--output-len", type=int, default=64)
    p.add_argument("--repeats", type=int, default=2)
    p.add_argument("--continuous", action="store_true")
    return p.parse_args()


def main() -> None:
    a = parse_arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.bfloat16).to(device).eval()
    start_s = time.perf_counter() - start
    rng = random.Random(0)

    def draw(count: int) -> list[list[int]]:
        vocab_size = model.config.vocab_size
        return [[rng.randrange(vocab_size) for _ in range(a.input_len)] for _ in range(count)]

    def run(batch: list[list[int]], new: int) -> None:
        if a.continuous:
            config = GenerationConfig(
                max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0
            )
            out = model.generate_batch(inputs=batch, generation_config=config)
            got = [len(one.generated_tokens) for one in out.values()]
        else:
            ids = torch.tensor(batch, device=device)
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
            )
            got = [out.shape[1] - a.input_len] * len(out)
        assert got == [new] * len(batch), got

    times = []
    with contextlib.nullcontext() if a.continuous else torch.inference_mode():
        run(draw(min(4, a.num_prompts)), a.output_len)
        for _ in range(a.repeats):
            batch = draw(a.num_prompts)
            start = time.perf_counter()
            run(batch, a.output_len)
            times.append(time.perf_counter() - start)
    best = min(times)
    result = {
        "system": "transformers",
        "continuous": a.continuous,
        "num_prompts": a.num_prompts,
        "input_len": a.input_len,
        "output_len": a.output_len,
        "start_s": round(start_s, 1),
        "elapsed_s": round(best, 2),
        "elapsed_s_all": [round(seconds, 2) for seconds in times],
        "total_tokens_per_s": round(a.num_prompts * (a.input_len + a.output_len) / best, 1),
        "output_tokens_per_s": round(a.num_prompts * a.output_len / best, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
