"""What the peers' scripts share: the arguments, the random prompts, the figures of a run.

Standard library only: each script runs in the environment of its peer.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from typing import Any

WARM_UP_PROMPTS = 4


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=doc)
    p.add_argument("--model", required=True, help="directory with safetensors")
    p.add_argument("--num-prompts", type=int, default=64)
    p.add_argument("--input-len", type=int, default=256)
    p.add_argument("--output-len", type=int, default=64)
    p.add_argument("--repeats", type=int, default=2)
    return p


def measure(
    a: argparse.Namespace, vocab_size: int, run: Callable[[list[list[int]]], None]
) -> list[float]:
    """Seconds of each repeat of `run`, with new prompts each time, after a warm-up of a few."""
    rng = random.Random(0)

    def draw(count: int) -> list[list[int]]:
        return [[rng.randrange(vocab_size) for _ in range(a.input_len)] for _ in range(count)]

    run(draw(min(WARM_UP_PROMPTS, a.num_prompts)))
    times = []
    for _ in range(a.repeats):
        batch = draw(a.num_prompts)
        start = time.perf_counter()
        run(batch)
        times.append(time.perf_counter() - start)
    return times


def print_figures(
    system: str, a: argparse.Namespace, start_s: float, times: list[float], **more: Any
) -> None:
    """One line of JSON, with the fields of `seesaw bench throughput`."""
    best = min(times)
    figures = {
        "system": system,
        **more,
        "num_prompts": a.num_prompts,
        "input_len": a.input_len,
        "output_len": a.output_len,
        "start_s": round(start_s, 1),
        "elapsed_s": round(best, 2),
        "elapsed_s_all": [round(seconds, 2) for seconds in times],
        "total_tokens_per_s": round(a.num_prompts * (a.input_len + a.output_len) / best, 1),
        "output_tokens_per_s": round(a.num_prompts * a.output_len / best, 1),
    }
    print(json.dumps(figures))
