"""Closed forms against the simulator, which runs the engine's own schedulers over the same costs.

A few small cells; `bench/plan_vs_simulated.py` holds the whole grid.
"""

from __future__ import annotations

import random
import statistics
from dataclasses import replace
from typing import Any

import pytest

from seesaw.config import EngineConfig
from seesaw.layout.parallel import ParallelLayout
from seesaw.plan.cost_model import CostModel
from seesaw.plan.demand import Demand
from seesaw.plan.estimate import Estimate
from seesaw.plan.machine import Machine
from seesaw.plan.machine_files import read_machines
from seesaw.plan.search import Plan, search
from seesaw.plan.step_times import Steps
from seesaw.plan.work import WorkCounter
from seesaw.plan.workload import Constant, Lengths, Listed, Workload
from seesaw.simulate.simulation import Scenario, simulate
from tests.plan.models import spec_of


def constant(prompt: int, answer: int) -> Workload:
    return Constant(f"{prompt}:{answer}", "a test", Lengths(prompt, answer))


def planned(
    model: str, machine: Machine, workload: Workload, num_requests: int, **settings: Any
) -> Plan:
    longest = max(map(sum, workload.draw(num_requests, 0)))
    config = EngineConfig(model=model, max_model_len=longest, **settings)
    return search(spec_of(model), (machine,), workload, num_requests, config)


def simulated_s(
    model: str, machine: Machine, workload: Workload, num_requests: int, one: Estimate
) -> float:
    lengths = workload.draw(num_requests, 0)
    config = EngineConfig(
        model=model,
        max_model_len=max(map(sum, lengths)),
        max_num_batched_tokens=one.max_num_batched_tokens,
    )
    return simulate(
        Scenario(
            spec=spec_of(model),
            machine=machine,
            layouts=(one.prefill, one.decode),
            config=config,
            requests=[(0.0, prompt, answer) for prompt, answer in lengths],
        )
    ).elapsed_s


def mixed_lengths(seed: int) -> Workload:
    drawn = random.Random(seed)
    return Listed(
        "mixed", [Lengths(drawn.randint(50, 800), drawn.randint(20, 300)) for _ in range(60)]
    )


@pytest.mark.parametrize(
    ("model", "name", "workload", "num_requests"),
    [
        ("15B", "4xl4", constant(3000, 250), 40),
        ("8B", "4xa10g", constant(350, 300), 120),
        ("34B", "8xl4", constant(128, 200), 60),
        ("15B", "4xl4", mixed_lengths(3), 60),
    ],
)
def test_estimates_agree_with_the_simulator(
    model: str, name: str, workload: Workload, num_requests: int
) -> None:
    (machine,) = read_machines(name)
    plan = planned(model, machine, workload, num_requests)
    candidates = plan.candidates[:8]
    took_s = [simulated_s(model, machine, workload, num_requests, one) for one in candidates]
    errors = [
        abs(simulated / one.elapsed_s - 1)
        for one, simulated in zip(candidates, took_s, strict=True)
    ]
    shown = [(one.name, one.elapsed_s, s) for one, s in zip(candidates, took_s, strict=True)]
    assert statistics.median(errors) < 0.10, shown
    assert max(errors) < 0.25, shown
    assert min(took_s) > 0.95 * took_s[0], f"the first is not the fastest: {shown}"


def test_the_moments_of_a_job() -> None:
    even = Demand.of([Lengths(100, 20)] * 3)
    assert (even.num_requests, even.prompt, even.answer, even.longest) == (3, 100, 20, 120)
    assert (even.context, even.residual) == (110, 10)
    assert even.is_even
    assert even.longest_of(1) == even.longest_of(1000) == 20
    uneven = Demand.of([Lengths(100, 10), Lengths(300, 30)], num_requests=1000)
    assert (uneven.num_requests, uneven.prompt, uneven.answer) == (1000, 200, 20)
    assert uneven.prompt_square == 50_000
    # Met while it decodes, an answer is three times as likely the long one.
    assert uneven.residual == pytest.approx(0.25 * 5 + 0.75 * 15)
    assert uneven.context == pytest.approx(0.25 * 100 + 0.75 * 300 + uneven.residual)
    assert not uneven.is_even
    assert (uneven.longest_of(0.5), uneven.longest_of(100)) == (10, 30)


@pytest.mark.parametrize("chunk", [500, 1000, 2000])
def test_steps_ask_for_what_their_rows_would(chunk: int) -> None:
    spec = spec_of("tiny")
    (machine,) = read_machines("l4")
    costs = CostModel(spec, machine, ParallelLayout(), "float16")
    counter = WorkCounter(spec)
    steps = Steps(costs, counter, Demand.of([Lengths(1000, 20)]), chunk)
    prompt = [(min(chunk, 1000), end, end == 1000) for end in range(1000, 0, -chunk)]
    expected = counter.count([*prompt, *prompt, *[(1, 1010, True)] * 5])
    found = steps.work(2000, 5)
    for name in ("num_tokens", "num_sampled", "pairs", "chunk_keys", "decode_keys"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name)), name


def test_phases_add_up_and_rates_follow() -> None:
    (machine,) = read_machines("8xl4")
    plan = planned("34B", machine, constant(1000, 200), 300)
    assert any(one.is_split for one in plan.candidates)
    for one in plan.candidates:
        spent = one.prefill_s + one.decode_s + one.mixed_s + one.transition_s
        assert one.elapsed_s == pytest.approx(spent)
        assert one.requests_per_s == pytest.approx(300 / one.elapsed_s)
        assert one.tokens_per_s == pytest.approx(1200 * one.requests_per_s)
        assert one.output_tokens_per_s == pytest.approx(200 * one.requests_per_s)
        assert (one.num_transitions > 0) == one.is_split
        assert (one.prefill_s > 0) == one.is_split
        assert (one.mixed_s > 0) != one.is_split
        assert one.prefill_bottleneck
        assert one.decode_bottleneck


def test_a_replica_is_a_smaller_machine() -> None:
    (machine,) = read_machines("8xl4")
    half = machine.part(0, 4)
    whole = planned("15B", machine, constant(500, 100), 400)
    alone = planned("15B", half, constant(500, 100), 200)
    by_name = {one.name: one for one in whole.candidates}
    compared = 0
    for one in alone.candidates:
        if one.decode.dp > 1:
            continue
        prefill, decode = (replace(layout, dp=2) for layout in (one.prefill, one.decode))
        name = decode.short if prefill == decode else f"{prefill.short} -> {decode.short}"
        # The host is shared by both, so that a replica's tier is as large.
        assert by_name[name].elapsed_s == pytest.approx(one.elapsed_s, rel=0.02), name
        compared += 1
    assert compared >= 6


def test_answers_of_one_token_need_no_second_phase() -> None:
    (machine,) = read_machines("8xl4")
    for one in planned("15B", machine, constant(500, 1), 100).candidates:
        assert one.num_transitions == 0
        assert one.transition_s == one.decode_s == 0


@pytest.mark.parametrize("num_requests", [1, 2, 7])
def test_very_few_requests(num_requests: int) -> None:
    (machine,) = read_machines("8xl4")
    plan = planned("15B", machine, constant(500, 50), num_requests)
    for one in plan.candidates:
        assert 0 < one.decode_batch <= num_requests
        assert one.elapsed_s > 0
    one = plan.candidates[0]
    took_s = simulated_s("15B", machine, constant(500, 50), num_requests, one)
    assert one.elapsed_s == pytest.approx(took_s, rel=0.25)


def test_faster_parts_never_make_a_job_slower() -> None:
    (machine,) = read_machines("4xa10g")
    workload = constant(700, 150)
    before = {one.name: one for one in planned("15B", machine, workload, 150).candidates}
    rates = machine.devices[0].rates
    faster = {
        "memory_bytes_per_s": 2 * rates.memory_bytes_per_s,
        "kv_bytes_per_s": 2 * rates.kv_bytes_per_s,
        "attention_flops": 2 * rates.attention_flops,
        "load_bytes_per_s": 2 * rates.load_bytes_per_s,
        "layer_overhead_s": 0.0,
    }
    for name, value in faster.items():
        device = replace(machine.devices[0], rates=replace(rates, **{name: value}))
        quicker = replace(machine, devices=(device,) * 4)
        for one in planned("15B", quicker, workload, 150).candidates:
            assert one.elapsed_s <= before[one.name].elapsed_s * (1 + 1e-9), (name, one.name)


def test_a_small_tier_costs_transitions() -> None:
    (machine,) = read_machines("4xl4")
    found = []
    for tier in ("4GiB", "16GiB", "64GiB"):
        plan = planned("15B", machine, constant(1000, 200), 400, host_kv_memory=tier)
        split = plan.best(split=True)
        assert split is not None
        found.append((split.num_transitions, split.elapsed_s))
    changes, seconds = zip(*found, strict=True)
    assert changes[0] > changes[1] > changes[2]
    assert seconds[0] > seconds[1] >= seconds[2]
