"""Run by test_limits.py in a process of its own: prints how much memory a real engine took.

usage: python -m tests.engine.measure_rss budget|stream MODEL BYTES_OR_COUNT
"""

from __future__ import annotations

import json
import sys

import torch  # noqa: F401  (what importing it takes is not the engine's)

from seesaw import LLM, EngineConfig, SamplingParams
from seesaw.weights.checkpoint import open_checkpoint
from tests.process_memory import status_bytes


def budget(model: str, device_memory: str) -> dict[str, int]:
    """Peak growth over a load and the largest steps there are: full chunks, full decode batches."""
    open_checkpoint(EngineConfig(model=model)).tokenizer()  # a tokenizer is not device memory
    before = status_bytes("VmRSS")
    with LLM(model, device_memory=device_memory, max_num_seqs=64, max_model_len=4096) as llm:
        plan = llm.engine.memory_plan
        sampling = SamplingParams(temperature=0.8, top_p=0.9, max_tokens=24, ignore_eos=True)
        prompts = [[5] * (plan.max_model_len - 50), [6] * (plan.max_model_len // 2)]
        prompts += [[number + 5] * 8 for number in range(64)]
        llm.generate(prompts, sampling, use_tqdm=False)
        usage = llm.engine.stats.scheduler.num_scheduled_tokens
    return {"growth": status_bytes("VmHWM") - before, "budget": plan.budget_bytes, "tokens": usage}


def stream(model: str, count: str) -> dict[str, int]:
    """RSS after a tenth of the rows and after all of them."""
    sampling = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    settings = {"device_memory": "600MiB", "max_num_seqs": 16, "max_model_len": 512}
    with LLM(model, **settings) as llm:
        prompts = (f"Row {number} is about" for number in range(int(count)))
        sizes = [status_bytes("VmRSS") for _ in llm.stream(prompts, sampling)]
    return {"rows": len(sizes), "warm": sizes[len(sizes) // 10], "end": sizes[-1]}


if __name__ == "__main__":
    verb, model, number = sys.argv[1:]
    print(json.dumps({"budget": budget, "stream": stream}[verb](model, number)))
