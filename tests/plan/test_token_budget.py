"""The largest step that keeps a bound between tokens, on devices of round figures."""

from __future__ import annotations

import random
from typing import Any

import pytest

from seesaw.errors import ConfigError
from seesaw.plan.token_budget import token_budget
from seesaw.plan.work import WorkCounter
from tests.plan.costs import costs_of
from tests.plan.devices import make_device
from tests.simulate.scenarios import layouts, tiny_spec

SPEC = tiny_spec()
ASKED: dict[str, Any] = {
    "tile": 16, "most": 512, "decodes": 10, "context": 400, "kv_tokens": 4000,
}  # fmt: skip


def costs(lay: str = "tp1", **rates: Any) -> Any:
    return costs_of(SPEC, layouts(lay)[1], make_device(**rates))


def tokens_per_s(rate: float) -> dict[str, float]:
    """Element-wise operations that pass so many tokens of one device's layers in a second."""
    one = costs(elementwise_bytes_per_s=1.0)
    bare = WorkCounter(SPEC).count([(1, 1, False)])
    return {"elementwise_bytes_per_s": rate * one.stage(0, bare).total_s}


@pytest.mark.parametrize(("rate", "budget"), [(100.0, 96), (90.0, 80), (1e6, 512)])
def test_whole_tiles_that_keep_the_bound(rate: float, budget: int) -> None:
    """A second for `rate` tokens, a little less for logits."""
    found = token_budget(costs(**tokens_per_s(rate)), bound_s=1.0, **ASKED)
    assert found == budget


def test_a_step_smaller_than_a_tile() -> None:
    found = token_budget(costs(), bound_s=1.0, **(ASKED | {"most": 9}))
    assert found == 9


def test_no_budget_keeps_such_a_bound() -> None:
    slow = costs(step_overhead_s=2.0)
    with pytest.raises(ConfigError) as caught:
        token_budget(slow, bound_s=1.5, **ASKED)
    for said in ("tbt_bound_s=1.5", "16 tokens", "10 answers", "2 s may pass", "max_num_seqs"):
        assert said in str(caught.value)


def test_no_step_that_the_budget_allows_takes_longer() -> None:
    """Steps drawn within it: chunks anywhere in a prompt, decodes of any length."""
    rng = random.Random(seed := random.SystemRandom().randrange(2**48))
    counter = WorkCounter(SPEC)
    budgets = []
    for _ in range(60):
        model = costs(
            elementwise_bytes_per_s=10 ** rng.uniform(5, 8), kv_bytes_per_s=10 ** rng.uniform(4, 8),
            attention_flops=10 ** rng.uniform(6, 9), flops=10 ** rng.uniform(6, 9),
            memory_bytes_per_s=10 ** rng.uniform(6, 9), step_overhead_s=1e-3,
        )  # fmt: skip
        # From less than the smallest budget takes to more than the largest.
        small = model.stages_s(counter.count([(16, 400, True)] + [(1, 400, True)] * 10))
        bound_s = 10 ** rng.uniform(-0.2, 2) * sum(small)
        try:
            budget = token_budget(model, bound_s=bound_s, **ASKED)
        except ConfigError:
            continue
        budgets.append(budget)
        for _ in range(20):
            decodes = rng.randint(0, min(10, budget))
            chunk = rng.randint(0, budget - decodes)
            rows = [(1, rng.randint(1, 400), True) for _ in range(decodes)]
            if chunk:
                rows.append((chunk, rng.randint(chunk, max(chunk, 400)), rng.random() < 0.5))
            seconds = sum(model.stages_s(counter.count(rows)))
            assert seconds <= bound_s * 1.001, f"seed {seed}: {rows}, budget {budget}"
    assert len(set(budgets)) > 3, f"seed {seed}: budgets {budgets}"


def test_memory_bounds_what_decodes_read() -> None:
    """400 tokens each of ten requests, or 40 where the pool has no more."""
    one = costs(kv_bytes_per_s=4.0 * SPEC.kv_bytes_per_token(2))
    with pytest.raises(ConfigError):
        token_budget(one, bound_s=250.0, **ASKED)
    small = ASKED | {"kv_tokens": 400}
    assert token_budget(one, bound_s=250.0, **small) == 512


def test_stages_take_turns_between_two_tokens() -> None:
    """Two stages of half the layers: a request's token comes round after both."""
    model = costs("pp2", step_overhead_s=1.0)
    assert token_budget(model, bound_s=2.1, **ASKED) == 512
    with pytest.raises(ConfigError):
        token_budget(model, bound_s=1.9, **ASKED)
