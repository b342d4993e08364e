"""A whole engine on Triton's kernels, in the interpreter: it answers as transformers does, also
with steps begun ahead and decode steps replayed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

pytest.importorskip("triton")

import seesaw.engine.build
from seesaw import SamplingParams
from seesaw.ops import triton_backend
from seesaw.ops.native import native
from tests.checkpoints import VOCAB_SIZE
from tests.engine import deferred
from tests.engine.rank_harness import engine_on, generate
from tests.engine.test_cuda_graphs import TwinRecorder
from tests.reference import Greedy, count_near_ties, greedy

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 32, "head_dim": 16}
SETTINGS = {"max_num_seqs": 4, "max_model_len": 64, "max_num_batched_tokens": 40}


@pytest.fixture
def on_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton's kernels on the CPU."""
    monkeypatch.setenv("SEESAW_KERNELS", "triton")
    for cached in (native, triton_backend.runs_on):
        cached.cache_clear()
    yield
    monkeypatch.undo()
    for cached in (native, triton_backend.runs_on):
        cached.cache_clear()


def random_prompts(lengths: list[int]) -> list[list[int]]:
    seed = random.randrange(2**31)
    print(f"random_prompts(seed={seed})")
    rng = random.Random(seed)
    return [[rng.randrange(4, VOCAB_SIZE) for _ in range(length)] for length in lengths]


def expected_of(model: Path, prompts: list[list[int]], got: list[list[int]]) -> list[Greedy]:
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    return [greedy(reference, *pair) for pair in zip(prompts, got, strict=True)]


def test_ids_equal_those_of_transformers(tiny_checkpoint, on_triton, caplog) -> None:
    model, prompts = tiny_checkpoint("qwen3", **SMALL), random_prompts([1, 23, 9])
    with engine_on(None, model, "tp1", "tp1", policy="continuous", **SETTINGS) as engine:
        got = [one.token_ids for one in generate(engine, prompts, GREEDY)]
    assert count_near_ties(got, expected_of(model, prompts, got)) <= 1
    assert "plain torch" not in caplog.text


def test_so_do_steps_begun_ahead_and_replayed(tiny_checkpoint, on_triton, monkeypatch) -> None:
    """Beside a request that is sampled, whose steps are recorded for themselves; blocks that nobody
    has are NaN."""
    recorder = TwinRecorder()
    monkeypatch.setenv("SEESAW_DEBUG_BLOCKS", "1")
    monkeypatch.setattr(seesaw.engine.build, "clock_of", deferred.clock_of)
    monkeypatch.setattr(seesaw.engine.build, "recorder_for", lambda setup, phases: recorder)
    model, prompts = tiny_checkpoint("mistral", **SMALL), random_prompts([2, 30, 9])
    sampled = SamplingParams(temperature=0.9, top_p=0.8, seed=3, max_tokens=5, ignore_eos=True)
    with engine_on(None, model, "tp1", "tp1", policy="continuous", **SETTINGS) as engine:
        engine.add_request("sampled", [5, 6, 7], sampled)
        for name, prompt in enumerate(prompts):
            engine.add_request(str(name), prompt, GREEDY)
        found = {}
        while engine.has_unfinished_requests():
            found |= {one.request_id: one.outputs[0].token_ids for one in engine.step()}
    assert len(found.pop("sampled")) == 5
    got = [found[name] for name in sorted(found)]
    assert count_near_ties(got, expected_of(model, prompts, got)) <= 1
    assert recorder.recorded >= 2, "greedy steps and others"
    assert recorder.replayed >= 3
