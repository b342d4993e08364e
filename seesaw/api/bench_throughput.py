"""Throughput of one offline batch of random tokens: how it is drawn, run and checked."""

from __future__ import annotations

import random
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from seesaw.api.environment import environment
from seesaw.api.llm import LLM
from seesaw.errors import ConfigError, SeesawError
from seesaw.sampling_params import SamplingParams

NUM_WARM_UP_PROMPTS = 4


@dataclass(frozen=True, kw_only=True)
class Workload:
    """`num_prompts` prompts of `input_len` random tokens, each answered with `output_len`."""

    num_prompts: int
    input_len: int
    output_len: int

    @property
    def sampling(self) -> SamplingParams:
        return SamplingParams(temperature=0, ignore_eos=True, max_tokens=self.output_len)

    def draw(self, rng: random.Random, vocab_size: int) -> list[list[int]]:
        """Prompts of uniformly random tokens."""
        return [
            [rng.randrange(vocab_size) for _ in range(self.input_len)]
            for _ in range(self.num_prompts)
        ]


def measure(settings: Mapping[str, Any], workload: Workload, repeats: int) -> dict[str, Any]:
    """Load the model once and run the workload `repeats` times, with new tokens each time."""
    start = time.perf_counter()
    with LLM(**settings) as llm:
        start_s = time.perf_counter() - start
        _check_fits(workload, llm.engine.max_model_len)
        rng = random.Random(settings["seed"])
        _warm_up(llm, workload, rng)
        elapsed_s_all = [_run(llm, workload, rng) for _ in range(repeats)]
        max_model_len = llm.engine.max_model_len
    elapsed_s = min(elapsed_s_all)
    num_output = workload.num_prompts * workload.output_len
    num_total = num_output + workload.num_prompts * workload.input_len
    return {
        "elapsed_s": elapsed_s,
        "elapsed_s_all": elapsed_s_all,
        "total_tokens_per_s": num_total / elapsed_s,
        "output_tokens_per_s": num_output / elapsed_s,
        "start_s": start_s,
        "peak_rss_bytes": peak_rss_bytes(),
        "workload": {**asdict(workload), "repeats": repeats},
        "settings": dict(settings),
        "max_model_len": max_model_len,
        "environment": environment(),
    }


def _check_fits(workload: Workload, max_model_len: int) -> None:
    if workload.input_len + workload.output_len > max_model_len:
        raise ConfigError(
            f"input_len={workload.input_len} and output_len={workload.output_len}: together they "
            f"are more than max_model_len={max_model_len}. Lower them, or raise max_model_len."
        )


def _warm_up(llm: LLM, workload: Workload, rng: random.Random) -> None:
    few = Workload(
        num_prompts=min(NUM_WARM_UP_PROMPTS, workload.num_prompts),
        input_len=workload.input_len,
        output_len=workload.output_len,
    )
    _run(llm, few, rng)


def _run(llm: LLM, workload: Workload, rng: random.Random) -> float:
    """Seconds of one run, detokenising included. Raises where an answer is not as asked for."""
    prompts = workload.draw(rng, llm.engine.vocab_size)
    start = time.perf_counter()
    outputs = llm.generate(prompts, workload.sampling, use_tqdm=False)
    elapsed_s = time.perf_counter() - start
    lengths = {len(output.outputs[0].token_ids) for output in outputs}
    if len(outputs) != workload.num_prompts or lengths != {workload.output_len}:
        raise SeesawError(
            f"bench: {len(outputs)} answers of {sorted(lengths)} tokens, expected "
            f"{workload.num_prompts} of {workload.output_len}: the figure would be wrong."
        )
    return elapsed_s


def peak_rss_bytes() -> int:
    """Most resident memory of this process so far. Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
