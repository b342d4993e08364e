"""Policies of one layout against the clock: what stalls cost, and a bound that a budget keeps."""

from __future__ import annotations

import random

import pytest

from seesaw.errors import ConfigError
from seesaw.simulate.results import Result
from seesaw.simulate.simulation import simulate
from tests.plan.devices import make_device, make_machine
from tests.simulate.scenarios import make_scenario, watched

PROMPTS_BESIDE_ANSWERS = [(0.0, 8, 400)] * 4 + [(float(i), 300, 2) for i in range(1, 40, 4)]

OPERATIONS = 2 * 4 * (2 * 64 * 64 + 64 * 64 + 3 * 64 * 128)
"""Of a token's matrix products in the four layers of the tiny model."""


def run(policy: str, tile: int | None = 16, **settings: object) -> Result:
    """A second for every 40 tokens of a step, and a hundredth for the step itself."""
    device = make_device(flops=40 * OPERATIONS, step_overhead_s=0.01)
    return simulate(
        make_scenario(
            PROMPTS_BESIDE_ANSWERS, policy=policy, machine=make_machine(device), tile=tile,
            max_num_seqs=16, max_num_batched_tokens=512, num_blocks=2000, max_model_len=512,
            **settings,
        )
    )  # fmt: skip


def test_stalls_are_counted_on_the_clock_too() -> None:
    first = run("prefill-first").counts
    served = run("sarathi-serve", policy_options={"token_budget": 64}).counts
    assert first is not None
    assert served is not None
    assert first.num_stalled_steps == first.num_prompt_steps - 1 > 0, "but for the first step"
    assert (served.num_stalls, served.num_hybrid_steps > 0) == (0, True)
    assert served.most_tokens <= 64
    assert first.num_decode_rows == served.num_decode_rows == 4 * 399 + 10
    assert run("sarathi", tile=None, policy_options={"chunk": 64, "tile": 16}).counts is None


def test_a_budget_of_ones_own_keeps_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    bound_s = 10 ** random.SystemRandom().uniform(-0.6, 0.6)
    sizes = []
    for policy, options in (
        ("sarathi-serve", {"token_budget": "auto", "tbt_bound_s": bound_s, "tile": 4}),
        ("continuous", {}),
    ):
        with watched(monkeypatch) as seen:
            run(policy, policy_options=options)
        longest_s = max(ran.output.busy_s for _, _, ran in seen)
        sizes.append(max(step.num_tokens for _, step, _ in seen))
        assert (longest_s <= bound_s) == (policy == "sarathi-serve"), f"{policy}, {bound_s} s"
    assert sizes[0] < sizes[1]


def test_a_bound_that_nothing_keeps_is_refused_before_any_step() -> None:
    with pytest.raises(ConfigError, match=r"tbt_bound_s=0\.01: with 128 tokens in a step"):
        run("sarathi-serve", policy_options={"token_budget": "auto", "tbt_bound_s": 0.01})


@pytest.mark.parametrize("policy", ["prefill-first", "sarathi", "sarathi-serve"])
def test_policies_of_one_layout_run_through_stages(policy: str) -> None:
    device = make_device(flops=40 * OPERATIONS, step_overhead_s=0.01)
    result = simulate(
        make_scenario(
            PROMPTS_BESIDE_ANSWERS, "pp2", policy=policy, machine=make_machine(device, 2),
            max_num_seqs=16, max_num_batched_tokens=512, num_blocks=2000, max_model_len=512,
        )
    )  # fmt: skip
    assert result.output_tokens == 4 * 400 + 10 * 2
    assert result.num_preemptions == 0


@pytest.mark.parametrize("policy", ["prefill-first", "sarathi", "sarathi-serve"])
def test_one_layout_only(policy: str) -> None:
    with pytest.raises(ConfigError, match=f"policy='{policy}' keeps no KV in the host tier"):
        simulate(make_scenario([(0.0, 4, 3)], "pp2 -> tp2", policy=policy))
