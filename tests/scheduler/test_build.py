"""Schedulers made from settings and a memory plan: one per replica, with the plan's budgets."""

from __future__ import annotations

from typing import Any

import pytest

from seesaw.config import EngineConfig
from seesaw.errors import ConfigError, RequestError
from seesaw.layout import ParallelLayout
from seesaw.plan.choice import LayoutChoice
from seesaw.plan.memory import Space, plan_memory
from seesaw.scheduler.build import make_schedulers
from seesaw.scheduler.scheduler import Scheduler
from tests.layout.models import make_model
from tests.scheduler.harness import add, rows_of, step_of

SPACE = Space("cuda", 2**34, 2**34, 2**34, 2**34)


def build(prefill: str, decode: str, policy: str, **settings: Any) -> list[Scheduler]:
    layouts = LayoutChoice(ParallelLayout.parse(prefill), ParallelLayout.parse(decode), "a test")
    config = EngineConfig(model="m", policy=policy, max_num_seqs=3, **settings)
    memory = plan_memory(config, make_model(), 2, SPACE, layouts, policy.startswith("seesaw"))
    return make_schedulers(
        config, memory, layouts, 4, policy,
        max_steps_in_flight=1, debug=True, costs=lambda replica: "nothing is known",
    )  # fmt: skip


def test_each_replica_has_a_scheduler_and_a_policy_of_its_own() -> None:
    one, other = build("dp2-tp2", "dp2-tp2", "continuous")
    add(one, "a", [1, 2, 3])
    assert rows_of(step_of(one)) == [("a", 0, 3, True)]
    assert other.schedule() is None


@pytest.mark.parametrize(
    ("prefill", "decode", "policy", "phase"),
    [("pp2", "pp2", "continuous", "decode"), ("pp2", "tp2", "seesaw", "prefill")],
)
def test_budgets_are_those_of_settings_and_plan(prefill, decode, policy, phase) -> None:
    (scheduler,) = build(prefill, decode, policy, max_num_batched_tokens=7, max_model_len=20)
    with pytest.raises(RequestError, match="max_model_len=20"):
        add(scheduler, "long", range(20))
    add(scheduler, "a", range(19))
    step = step_of(scheduler)
    assert step.phase == phase
    assert rows_of(step) == [("a", 0, 7, False)]
    assert scheduler.config.most_in_flight(phase) == 3, "two stages and one more"
    assert scheduler.config.most_in_flight("decode") == (3 if decode == "pp2" else 1)


def test_options_that_a_policy_does_not_know_are_refused() -> None:
    with pytest.raises(ConfigError, match="made_up"):
        build("tp2", "tp2", "continuous", policy_options={"made_up": 1})


@pytest.mark.parametrize(
    ("policy", "options"), [("sarathi", {"chunk": 512}), ("sarathi-serve", {"token_budget": 257})]
)
def test_more_tokens_than_a_step_has_are_refused(policy: str, options: dict[str, int]) -> None:
    """Cut to what there is, they would do nothing, unnoticed. Defaults are cut."""
    with pytest.raises(ConfigError, match=r"max_num_batched_tokens=256\. Raise that"):
        build("tp2", "tp2", policy, policy_options=options, max_num_batched_tokens=256)
    build("tp2", "tp2", policy, policy_options=options, max_num_batched_tokens=512)
    build("tp2", "tp2", policy, max_num_batched_tokens=128)
