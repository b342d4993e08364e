"""Layered prefill against a clock: every position runs every layer once, whatever happens, and what
it is for shows: fewer reads of experts, and first tokens that come sooner."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from seesaw.families.spec import ModelSpec
from seesaw.simulate.results import Result
from seesaw.simulate.scenario import Scenario
from seesaw.simulate.simulation import simulate
from tests.layout.models import make_model
from tests.plan.devices import make_device, make_machine
from tests.simulate.scenarios import make_config, make_scenario, random_scenario, watched


def layered(scenario: Scenario, **options: Any) -> Scenario:
    """With its decode layout for both phases."""
    return replace(
        scenario,
        layouts=(scenario.layouts[1],) * 2,
        config=replace(
            scenario.config, policy="layered-prefill", policy_options=options, reload="auto",
            host_kv_memory=None, kv_path="auto",
        ),
        prefill_blocks=None,
        tier_blocks=None,
    )  # fmt: skip


def test_a_prompt_of_two_groups_beside_an_answer() -> None:
    """A layer that is run takes a second: 4 for a step, since decodes run all of them."""
    machine = make_machine(make_device(layer_overhead_s=1.0))
    scenario = make_scenario([(0.0, 1, 5), (3.0, 4, 1)], machine=machine, max_steps_in_flight=1)
    result = simulate(layered(scenario, group_tokens=2))
    # It waits for the step that begins with it at 4 s and runs two layers in each of two steps.
    assert result.samples["first_token"] == [4.0, 9.0]
    assert result.elapsed_s == 20.0


def test_every_position_runs_every_layer_once_and_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = random.SystemRandom().randrange(2**32)
    print(f"base={base}")
    num_parts = sum(check_scenario(seed, monkeypatch) for seed in range(base, base + 40))
    assert num_parts > 50, "hardly any row stopped between layers"


def check_scenario(seed: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many of its rows stopped between two layers."""
    rng = random.Random(seed)
    scenario = layered(
        random_scenario(rng),
        group_tokens=rng.choice([1, 4, 16]),
        max_groups=rng.choice([1, 2, 16]),
        wave_tokens=rng.choice([10, 8192]),
    )
    with watched(monkeypatch) as seen:
        result = simulate(scenario)
    computed: Counter[str] = Counter()
    halfway: dict[str, tuple[int, int]] = {}  # tokens, and the layer that is next
    num_parts = 0
    num_layers = scenario.spec.num_hidden_layers
    for _, step, ran in seen:
        for request_id in (*step.preempted, *step.finished):
            halfway.pop(request_id, None)
        for request_id in step.preempted:
            computed.pop(request_id, None)
        assert ran.work.num_tokens == step.num_tokens
        for row in step.rows:
            assert row.token_start == computed[row.request_id], seed
            expected = halfway.pop(row.request_id, (row.num_tokens, 0))
            assert (row.num_tokens, row.layer_start) == expected, seed
            if row.layer_stop == num_layers:
                computed[row.request_id] += row.num_tokens
            else:
                num_parts += 1
                halfway[row.request_id] = row.num_tokens, row.layer_stop
    assert not halfway, seed
    for number, (_, prompt, answer) in enumerate(scenario.requests):
        over = computed[str(number)] - (prompt + answer - 1)
        assert over == 0 or (over > 0 and not scenario.answers_known), seed
    assert result.output_tokens == sum(answer for _, _, answer in scenario.requests)
    return num_parts


def under_load(spec: ModelSpec, policy: str, every_s: float, **options: Any) -> Result:
    """Prompts come while others answer, on a device where reading weights is what takes time."""
    machine = make_machine(
        make_device(memory_bytes_per_s=1e8, flops=1e11, step_overhead_s=1e-6, kv_bytes_per_s=1e9)
    )
    requests = [(every_s * number, 192, 24) for number in range(24)]
    scenario = make_scenario(
        requests, spec=spec, machine=machine, num_blocks=4000,
        config=make_config(
            policy=policy, policy_options=options, max_num_batched_tokens=300, max_model_len=400,
            dtype="float16",
        ),
    )  # fmt: skip
    return simulate(scenario)


def sparse_model() -> ModelSpec:
    return replace(
        make_model(
            layers=12, sparse=True, num_experts=64, num_experts_per_tok=4,
            moe_intermediate_size=32,
        ),
        max_position_embeddings=512,
    )  # fmt: skip


def test_experts_are_read_less_often_and_first_tokens_come_sooner() -> None:
    chunked = under_load(sparse_model(), "continuous", 0.4, max_prefill_chunk=16)
    grouped = under_load(sparse_model(), "layered-prefill", 0.4, group_tokens=16)
    assert grouped.output_tokens == chunked.output_tokens
    assert grouped.expert_loads < 0.8 * chunked.expert_loads
    for name in ("first_token", "end_to_end"):
        assert grouped.latency_s[name].mean < chunked.latency_s[name].mean
    assert grouped.elapsed_s <= chunked.elapsed_s
    assert grouped.to_json()["expert_loads"] == grouped.expert_loads


def test_a_dense_model_gains_nothing() -> None:
    """All weights are read in every step as it is."""
    spec = replace(make_model(layers=12), max_position_embeddings=512)
    chunked = under_load(spec, "continuous", 0.05, max_prefill_chunk=16)
    grouped = under_load(spec, "layered-prefill", 0.05, group_tokens=16)
    assert grouped.expert_loads == chunked.expert_loads == 0
    assert grouped.latency_s["first_token"].mean > 0.9 * chunked.latency_s["first_token"].mean
