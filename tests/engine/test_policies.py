"""Every policy of one layout answers what `continuous` answers, in float32, and steps of a real
engine are counted."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from seesaw import LLM, SamplingParams
from seesaw.engine.layouts import replica_costs
from seesaw.errors import ConfigError
from seesaw.layout.parallel import ParallelLayout
from seesaw.ops.native import native
from seesaw.plan.choice import LayoutChoice
from seesaw.plan.machine_files import builtin_cpu, local_path, write_machines
from tests.checkpoints import VOCAB_SIZE
from tests.engine.rank_harness import RankPool, engine_on, generate
from tests.plan.models import spec_of

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
SETTINGS: dict[str, Any] = {
    "dtype": "float32", "device": "cpu", "device_memory": "512MiB", "block_size": 16,
    "max_model_len": 160, "max_num_seqs": 8,
}  # fmt: skip
MOST_DIFFERING = 0 if native() is not None else 1
"""In plain torch a near-tie of two logits may fall either way when sums are made in another order;
in `seesaw._cpu` a row comes out the same to the bit whatever it runs beside."""
POLICIES: list[tuple[str, dict[str, Any]]] = [
    ("prefill-first", {}),
    ("sarathi", {"chunk": 32, "tile": 8}),
    ("sarathi", {"chunk": 7, "tile": 1}),
    ("sarathi-serve", {"token_budget": 9}),
    ("sarathi-serve", {"token_budget": 48}),
    ("sarathi-serve", {"batches": "hybrid-only"}),
    ("sarathi-serve", {"batches": "chunk-only", "token_budget": 20}),
]


def random_prompts(count: int, longest: int) -> list[list[int]]:
    rng = random.Random(seed := random.randrange(2**31))
    print(f"random_prompts(seed={seed})")
    lengths = [1, longest, *(rng.randrange(1, longest) for _ in range(count - 2))]
    return [[rng.randrange(4, VOCAB_SIZE) for _ in range(length)] for length in lengths]


def answers(model: Path, prompts: list[list[int]], **settings: Any) -> list[list[int]]:
    with LLM(str(model), **(SETTINGS | settings)) as llm:
        outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_ids_do_not_depend_on_the_policy(family: str, tiny_checkpoint: Any) -> None:
    model, prompts = tiny_checkpoint(family), random_prompts(14, 120)
    expected = answers(model, prompts)
    for policy, options in POLICIES:
        got = answers(model, prompts, policy=policy, policy_options=options)
        differ = [index for index in range(len(prompts)) if got[index] != expected[index]]
        assert len(differ) <= MOST_DIFFERING, f"{policy} {options}: answers {differ} differ"


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    made = RankPool()
    yield made
    made.close()


def test_ids_do_not_depend_on_the_policy_in_a_pipeline(
    tiny_checkpoint: Any, pool: RankPool
) -> None:
    model, prompts = tiny_checkpoint("llama"), random_prompts(10, 100)
    expected = answers(model, prompts)
    for policy, options in (POLICIES[0], POLICIES[1], POLICIES[3]):
        with engine_on(
            pool.of(2), model, "pp2", "pp2",
            policy=policy, policy_options=options, host_kv_memory=None,
        ) as engine:  # fmt: skip
            got = [one.token_ids for one in generate(engine, prompts, GREEDY)]
        differ = [index for index in range(len(prompts)) if got[index] != expected[index]]
        assert len(differ) <= MOST_DIFFERING, f"{policy} {options}: answers {differ} differ"


@pytest.mark.parametrize(
    ("policy", "options"),
    [("prefill-first", {}), ("sarathi", {"chunk": 16, "tile": 8}),
     ("sarathi-serve", {"token_budget": 16})],
)  # fmt: skip
def test_decodes_beside_a_long_prompt(
    policy: str, options: dict[str, Any], tiny_checkpoint: Any
) -> None:
    """They stall under `prefill-first`, and not under the others."""
    short, (_, long) = random_prompts(6, 5), random_prompts(2, 140)
    settings = {**SETTINGS, "policy": policy, "policy_options": options}
    with LLM(str(tiny_checkpoint("llama")), **settings) as llm:
        engine = llm.engine
        assert engine.stats.counts is None
        engine.count_steps(tile=8)
        for index, prompt in enumerate(short):
            sampling = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
            engine.add_request(str(index), prompt, sampling)
        before = engine.stats.counts
        assert before is not None
        while before.num_decode_rows < 30:
            engine.step()
            before = engine.stats.counts
            assert before is not None
        engine.add_request("long", long, SamplingParams(temperature=0, max_tokens=2))
        while engine.has_unfinished_requests():
            engine.step()
        counts = engine.stats.counts
    assert counts is not None
    if policy == "prefill-first":
        assert counts.num_stalled_steps == 1
        assert counts.num_stalls == len(short)
    else:
        assert counts.num_stalls == 0
        assert counts.num_hybrid_steps >= len(long) // 16
        assert counts.most_tokens <= 16


def test_a_budget_by_costs_needs_figures_of_this_machine(
    tiny_checkpoint: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SEESAW_CACHE_ROOT", str(tmp_path))
    auto = {"token_budget": "auto", "tbt_bound_s": 5.0, "tile": 8}
    settings = {"policy": "sarathi-serve", "policy_options": auto, "max_num_batched_tokens": 50}
    model, prompts = tiny_checkpoint("llama"), random_prompts(3, 100)
    with pytest.raises(ConfigError, match=r"run `seesaw calibrate`\. Or give a number of tok"):
        answers(model, prompts, **settings)
    # As if it had been measured; each step of such a model keeps the bound.
    write_machines(local_path(), builtin_cpu(2, 2**36))
    with LLM(str(model), **(SETTINGS | settings)) as llm:
        llm.engine.count_steps()
        llm.generate(prompts, GREEDY, use_tqdm=False)
        counts = llm.engine.stats.counts
    assert counts is not None
    assert counts.most_tokens == 48


def test_a_budget_goes_by_costs_of_a_replica_in_its_layout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SEESAW_CACHE_ROOT", str(tmp_path))
    write_machines(local_path(), builtin_cpu(2, 2**36))
    spec = spec_of("8B")
    for text, replica in (("pp2", ParallelLayout(pp=2)), ("dp2", ParallelLayout())):
        layout = ParallelLayout.parse(text)
        layouts = LayoutChoice(layout, layout, "given")
        costs = replica_costs(spec, layouts, torch.device("cpu"), torch.float32)
        assert not isinstance(costs, str), costs
        assert (costs.layout, costs.dtype) == (replica, "float32")
