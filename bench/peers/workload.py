"""What the scripts of peers share: the arguments, the random prompts, the figures, and the way to
be asked for one run after another.

Standard library only: each script runs in the environment of its peer.
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

WARM_UP_PROMPTS = 4

Run = Callable[[list[list[int]], int], None]
"""Answers each of the prompts with so many tokens."""


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=doc)
    p.add_argument("--model", required=True, help="directory with safetensors")
    p.add_argument("--num-prompts", type=int, default=64)
    p.add_argument("--input-len", type=int, default=256)
    p.add_argument("--output-len", type=int, default=64)
    p.add_argument("--repeats", type=int, default=2)
    p.add_argument(
        "--serve",
        action="store_true",
        help="instead: read workloads from standard input, a JSON object with num_prompts, "
        "input_len, output_len and warm_up per line, and answer each with a line of figures",
    )
    return p


class Prompts:
    """Random ones, new ones each time."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._rng = random.Random(0)

    def draw(self, count: int, length: int) -> list[list[int]]:
        return [
            [self._rng.randrange(self._vocab_size) for _ in range(length)] for _ in range(count)
        ]


def measure_all(
    system: str, a: argparse.Namespace, start_s: float, vocab_size: int, run: Run, **more: Any
) -> None:
    """Warm-up and repeats of one workload, or with --serve what is asked for; prints figures."""
    prompts = Prompts(vocab_size)
    if a.serve:
        serve(system, start_s, prompts, run)
        return
    run(prompts.draw(min(WARM_UP_PROMPTS, a.num_prompts), a.input_len), a.output_len)
    times = [
        timed(run, prompts.draw(a.num_prompts, a.input_len), a.output_len) for _ in range(a.repeats)
    ]
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


def serve(system: str, start_s: float, prompts: Prompts, run: Run) -> None:
    """Until standard input ends. Of what libraries print nothing may reach standard output."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**figures: Any) -> None:
        print(json.dumps(figures), file=answers, flush=True)

    answer(system=system, start_s=start_s)
    for line in sys.stdin:
        asked = json.loads(line)
        count, length = asked["num_prompts"], asked["input_len"]
        if asked["warm_up"]:
            run(prompts.draw(min(WARM_UP_PROMPTS, count), length), asked["output_len"])
            answer(elapsed_s=None)
        else:
            batch = prompts.draw(count, length)
            answer(elapsed_s=timed(run, batch, asked["output_len"]))


def timed(run: Run, batch: list[list[int]], output_len: int) -> float:
    start = time.perf_counter()
    run(batch, output_len)
    return time.perf_counter() - start
