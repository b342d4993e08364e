"""The work of `seesaw bench throughput` through transformers; prints one JSON line.

A static batch by `generate`, or with --continuous the continuous batching of `generate_batch`.
"""

import argparse
import contextlib
import time

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from workload import make_parser, measure_all


def parse_arguments() -> argparse.Namespace:
    p = make_parser(__doc__)
    p.add_argument("--continuous", action="store_true")
    return p.parse_args()


def main() -> None:
    a = parse_arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.bfloat16).to(device).eval()
    start_s = time.perf_counter() - start

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
            got = [out.shape[1] - len(batch[0])] * len(out)
        assert got == [new] * len(batch), got

    with contextlib.nullcontext() if a.continuous else torch.inference_mode():
        vocab_size = model.config.vocab_size
        measure_all("transformers", a, start_s, vocab_size, run, continuous=a.continuous)


if __name__ == "__main__":
    main()
