"""Greedy ids against transformers in float32, and against ourselves however the work is cut.

A differing id is allowed only where the reference's two best logits are closer than 1e-3, and such
cases are counted.
"""

from __future__ import annotations

import contextlib
import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from seesaw import LLM, SamplingParams
from tests.checkpoints import FAMILIES
from tests.engine.prompts import random_prompts
from tests.reference import count_near_ties, greedy

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module")
def make(device):
    """An LLM with small settings, some of them overridden."""

    def made(model, **settings) -> LLM:
        defaults = {"dtype": "float32", "device": device, "device_memory": "1GiB"}
        return LLM(str(model), **(defaults | {"block_size": 16} | settings))

    return made


def answers(make, model, prompts, sampling=GREEDY, **settings) -> list[list[int]]:
    with make(model, **settings) as llm:
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_equal_those_of_transformers(family, tiny_checkpoint, make):
    path = tiny_checkpoint(family)
    prompts = random_prompts(8, 90)
    reference = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    got = answers(make, path, prompts)
    assert {len(answer) for answer in got} == {GREEDY.max_tokens}
    expected = [greedy(reference, *pair) for pair in zip(prompts, got, strict=True)]
    ties = count_near_ties(got, expected)
    assert ties <= 2, f"{ties} of {len(prompts)} answers part at near-ties"


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
def test_ids_do_not_depend_on_how_the_work_is_cut(family, tiny_checkpoint, make):
    """Alone or together, chunked or whole, shared or computed, preempted or not, any block size."""
    path = tiny_checkpoint(family)
    prompts = random_prompts(64, 70)
    expected = answers_alone(make, path, prompts)
    for settings in (
        {},
        {"enable_prefix_caching": False},
        {"max_num_batched_tokens": 64, "max_num_seqs": 64},
        {"policy_options": {"max_prefill_chunk": 7}},
        {"policy_options": {"max_prefill_chunk": 1}, "block_size": 64},
        {"max_model_len": 100, "max_num_seqs": 5},
        {"block_size": 1, "max_num_seqs": 9},
    ):
        got = answers(make, path, prompts, **settings)
        ties = count_near_ties(got, expected)
        assert ties <= 3, f"{settings}: {ties} of {len(prompts)} answers part at near-ties"


def answers_alone(make, path, prompts):
    """What transformers answers, after a check that we answer the same to each prompt alone."""
    reference = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with make(path, enable_prefix_caching=False) as llm:
        alone = [llm.generate([p], GREEDY, use_tqdm=False)[0].outputs[0].token_ids for p in prompts]
    expected = [greedy(reference, *pair) for pair in zip(prompts, alone, strict=True)]
    assert count_near_ties(alone, expected) <= 3
    return expected


def test_a_pool_that_is_too_small_for_all_preempts_and_still_answers_the_same(
    tiny_checkpoint, make
):
    path = tiny_checkpoint("llama")
    prompts = random_prompts(24, 60)
    expected = answers_alone(make, path, prompts)
    with make(path, max_model_len=96, max_num_seqs=24, device_memory=tight(make, path)) as llm:
        outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
        assert llm.engine.stats.scheduler.num_preemptions > 0
    assert count_near_ties([o.outputs[0].token_ids for o in outputs], expected) <= 2


def tight(make, path) -> str:
    """A budget that leaves KV for about three of the longest requests."""
    with make(path, max_model_len=96, max_num_seqs=24) as llm:
        plan = llm.engine.memory_plan
    return str(plan.arena_bytes + plan.work_bytes + 18 * plan.block_bytes)


def test_bf16_logprobs_are_close_to_float32(tiny_checkpoint, make):
    """bf16 keeps 8 bits: over 3 layers the log-probability of a token moves by less than 0.15."""
    path = tiny_checkpoint("qwen3")
    prompts = random_prompts(6, 40)
    sampling = SamplingParams(temperature=0, max_tokens=1, logprobs=20)
    found = []
    for dtype in ("float32", "bfloat16"):
        with make(path, dtype=dtype) as llm:
            outputs = llm.generate(prompts, sampling, use_tqdm=False)
        found.append([o.outputs[0].logprobs[0] for o in outputs])
    for exact, rounded in zip(*found, strict=True):
        common = exact.keys() & rounded.keys()
        assert len(common) >= 15
        for token in common:
            assert abs(exact[token].logprob - rounded[token].logprob) < 0.15


@pytest.mark.model
def test_smollm2_answers_as_transformers_does(smollm2_gguf, make):
    """16 real prompts x 64 tokens; transformers loads the same file by its own conversion."""
    folder, name = smollm2_gguf.parent, smollm2_gguf.name
    reference = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32
    ).eval()
    import textwrap as a_module_with_docstrings

    texts = [
        obj.__doc__
        for module in (contextlib, random, a_module_with_docstrings)
        for obj in vars(module).values()
        if getattr(obj, "__doc__", None)
    ][:16]
    assert len(texts) == 16
    chats = [[{"role": "user", "content": f"Summarise:\n{text[:600]}"}] for text in texts]
    sampling = SamplingParams(temperature=0, max_tokens=64)
    with make(smollm2_gguf, device_memory="3GiB", max_model_len=2048) as llm:
        outputs = llm.chat(chats, sampling, use_tqdm=False)
        eos = tuple(llm.engine.eos_token_ids)
    got = [o.outputs[0].token_ids for o in outputs]
    assert all(len(answer) == 64 or answer[-1] in eos for answer in got)
    expected = [
        greedy(reference, o.prompt_token_ids, answer)
        for o, answer in zip(outputs, got, strict=True)
    ]
    ties = count_near_ties(got, expected)
    assert ties <= 1, f"{ties} of 16 answers part at near-ties"
