"""What KV that moves behind a phase costs that phase.

usage: python bench/hidden_copies.py --model DIR_OR_GGUF [--prompts 16] [--rounds 5]
           [--output-json FILE]

Two ranks, prompts in pp2, answers in tp2. Stores: prompts whose answer has one token are not
stored, with two they are, so that the difference of the two prefill phases is what stores cost.
Loads: answers of unequal lengths have requests loaded while others decode; steps that began a load
are compared with steps of as many rows that did not. Both are set against the time in which the
same bytes are copied from memory to memory by one thread, measured in the same round. Runs take
turns; medians.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from seesaw import SamplingParams
from seesaw.config import EngineConfig
from seesaw.engine.engine import Engine
from seesaw.scheduler.output import SchedulerOutput

COPY_BYTES = 256 * 2**20
INPUT_LEN = 1024
ANSWERS = range(8, 72, 4)
BOUND = 1.2


def copy_bytes_per_s() -> float:
    """Best of five copies by one thread: bytes copied, each of which is read and written."""
    source, target = (torch.ones(COPY_BYTES, dtype=torch.uint8) for _ in range(2))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = []
    for _ in range(5):
        began_s = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - began_s)
    torch.set_num_threads(threads)
    return COPY_BYTES / min(seconds)


class Bench:
    def __init__(self, engine: Engine, num_prompts: int) -> None:
        self._engine = engine
        self._num_prompts = num_prompts
        self._rng = random.Random(0)
        self._job = 0

    def run(self, answers: Sequence[int]) -> dict[str, Any]:
        """One job, an answer of each length; its phase's seconds, bytes and decode steps."""
        self._job += 1
        before = copy.deepcopy(self._engine.stats.transfers)
        steps: list[tuple[int, bool, float]] = []

        def observe(step: SchedulerOutput, seconds: float) -> None:
            if step.phase == "decode" and not step.reshard:
                rows = sum(len(lane.rows) for lane in step.lanes)
                steps.append((rows, bool(step.loads), seconds))

        self._engine.observe_steps(observe)
        for number, length in enumerate(answers):
            prompt = [self._rng.randrange(self._engine.vocab_size) for _ in range(INPUT_LEN)]
            sampling = SamplingParams(temperature=0, ignore_eos=True, max_tokens=length)
            self._engine.add_request(f"{self._job}/{number}", prompt, sampling)
        while self._engine.has_unfinished_requests():
            self._engine.step()
        self._engine.settle()
        self._engine.observe_steps(None)
        after = self._engine.stats.transfers
        return {
            "prefill_s": after.prefill_s - before.prefill_s,
            "store_bytes": after.kv_store_bytes - before.kv_store_bytes,
            "load_bytes": after.kv_load_bytes - before.kv_load_bytes,
            "steps": steps,
        }

    def stores(self) -> tuple[float, float]:
        """(seconds by which stores lengthen prefill, their bytes of one rank)."""
        plain = self.run([1] * self._num_prompts)
        stored = self.run([2] * self._num_prompts)
        assert plain["store_bytes"] == 0 < stored["store_bytes"], (plain, stored)
        return stored["prefill_s"] - plain["prefill_s"], stored["store_bytes"] / 2

    def loads(self) -> tuple[float, float] | None:
        """(seconds by which loads lengthen decode, their bytes of one rank), over steps that have
        one of as many rows without loads to be compared with."""
        lengths = [ANSWERS[number % len(ANSWERS)] for number in range(self._num_prompts)]
        job = self.run(lengths)
        plain, loading = defaultdict(list), defaultdict(list)
        for rows, loads, seconds in job["steps"]:
            (loading if loads else plain)[rows].append(seconds)
        alike = [rows for rows in loading if rows in plain]
        if not alike:
            return None
        extra_s = sum(
            sum(loading[rows]) - len(loading[rows]) * statistics.median(plain[rows])
            for rows in alike
        )
        share = sum(len(loading[rows]) for rows in alike) / sum(map(len, loading.values()))
        return extra_s, share * job["load_bytes"] / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output-json", type=Path)
    args = parser.parse_args()
    config = EngineConfig(
        model=args.model, device="cpu", dtype="bfloat16", device_memory="4GiB",
        max_model_len=INPUT_LEN + max(ANSWERS) + 8, max_num_seqs=8, max_num_batched_tokens=1024,
        enable_prefix_caching=False, prefill_layout="pp2", decode_layout="tp2",
        host_kv_memory="4GiB",
    )  # fmt: skip
    found: dict[str, list[dict[str, float]]] = {"stores": [], "loads": []}
    with Engine(config) as engine:
        bench = Bench(engine, args.prompts)
        bench.run([4] * 4)  # touches code, pools and tier
        for _ in range(args.rounds):
            rate = copy_bytes_per_s()
            for name, measured in (("stores", bench.stores()), ("loads", bench.loads())):
                if measured is None:
                    continue
                extra_s, nbytes = measured
                one = {"extra_s": extra_s, "bytes": nbytes, "copy_s": nbytes / rate}
                found[name].append(one)
                print(
                    f"{name:7} {extra_s * 1e3:8.1f} ms for {nbytes / 1e6:8.1f} MB of each rank, "
                    f"{extra_s / one['copy_s']:5.2f} of the time to copy them "
                    f"({rate / 1e9:.1f} GB/s)",
                    flush=True,
                )
    for name, rounds in found.items():
        ratio = statistics.median(one["extra_s"] / one["copy_s"] for one in rounds)
        print(f"{name}: median {ratio:.2f} of the time to copy their bytes (bound {BOUND})")
    if args.output_json:
        args.output_json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
