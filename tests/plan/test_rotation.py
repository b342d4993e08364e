"""When the planner lets running requests take turns: what it bounds, and what it gives up on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from seesaw.config import EngineConfig, RunningTier
from seesaw.errors import ConfigError
from seesaw.layout.parallel import ParallelLayout
from seesaw.plan.cost_model import CostModel
from seesaw.plan.demand import Demand
from seesaw.plan.machine import Machine
from seesaw.plan.machine_files import read_machines
from seesaw.plan.memory import MemoryPlan
from seesaw.plan.rotation import (
    LEAST_GAIN,
    MOST_TURNING,
    TIER_SHARE,
    Rotation,
    can_rotate,
    check_wanted,
    plan_rotation,
)
from seesaw.plan.step_times import Steps
from seesaw.plan.work import WorkCounter
from seesaw.plan.workload import Lengths
from seesaw.simulate.scenario import Scenario
from seesaw.simulate.setup import Setup
from tests.plan.models import spec_of

SPEC = spec_of("34B")


class Case:
    """34B on four L4 in four stages, requests of 2000 tokens in and 400 out."""

    def __init__(self, link_gbs: float = 16.0, decode: str = "pp4") -> None:
        (machine,) = read_machines("4xl4")
        self.layout = ParallelLayout.parse(decode)
        self.demand = Demand.of([Lengths(2000, 400)], 200)
        config = EngineConfig(model="34B", policy="seesaw", max_model_len=2400)
        scenario = Scenario(
            spec=SPEC, machine=machine, layouts=(self.layout, self.layout), config=config,
            requests=[(0.0, 2000, 400)] * 200,
        )  # fmt: skip
        self.memory: MemoryPlan = Setup(scenario).memory
        self.machine = with_links(machine, link_gbs * 1e9)

    @property
    def steps(self) -> Steps:
        costs = CostModel(SPEC, self.machine, self.layout, "bfloat16")
        return Steps(costs, WorkCounter(SPEC), self.demand, 2048)

    def plan(self, wanted: RunningTier = "on", max_num_seqs: int = 256) -> Rotation | None:
        return plan_rotation(wanted, self.steps, self.memory, self.demand, max_num_seqs)

    def change(self, **given: Any) -> Case:
        self.memory = replace(self.memory, **given)
        return self


def with_links(machine: Machine, rate: float) -> Machine:
    devices = [
        replace(one, rates=replace(one.rates, load_bytes_per_s=rate, store_bytes_per_s=rate))
        for one in machine.devices
    ]
    return replace(machine, devices=devices, host_bytes_per_s=None)


def found(case: Case, **given: Any) -> Rotation:
    plan = case.plan(**given)
    assert plan is not None
    return plan


def test_the_batch_is_what_the_pool_holds_and_what_is_on_its_way() -> None:
    case = Case()
    plan = found(case)
    pool = case.memory.num_blocks * case.memory.block_size
    held = case.demand.context + case.memory.block_size / 2
    assert plan.still == pytest.approx(pool / held)
    assert plan.batch == pytest.approx((pool + 2 * plan.tokens) / held, rel=0.01)
    assert held - 1 <= plan.tokens <= MOST_TURNING / 2 * pool + held
    assert plan.gain > LEAST_GAIN
    assert f"{plan.batch:.0f} run where the decode pool holds {plan.still:.0f}" in plan.describe()


def test_a_slower_link_gains_less_and_auto_gives_it_up() -> None:
    gains = [found(Case(link)).gain for link in (64.0, 16.0, 4.0, 1.0, 0.25)]
    assert gains == sorted(gains, reverse=True)
    assert gains[-1] < 1
    for link, gain in zip((64.0, 16.0, 4.0, 1.0, 0.25), gains, strict=True):
        assert (Case(link).plan("auto") is not None) == (gain >= LEAST_GAIN), (link, gain)


def test_no_more_run_than_requests_seats_and_tier_allow() -> None:
    case = Case()
    free = found(case).batch
    assert found(case, max_num_seqs=int(free) - 2).batch == int(free) - 2
    held = case.demand.context + case.memory.block_size / 2
    blocks = int((free - 3) * held / TIER_SHARE / case.memory.tier_block_size)
    small = found(Case().change(tier_blocks=blocks))
    assert small.batch == pytest.approx(free - 3, rel=0.02)
    case.demand = replace(case.demand, num_requests=5)
    assert found(case).batch == 5
    assert case.plan("auto") is None, "the pool holds them all"


def test_where_it_is_not_wanted_or_cannot_be() -> None:
    assert Case().plan("off") is None
    assert Case().change(tier_blocks=0).plan() is None
    assert Case(decode="tp2-pp2").plan() is None
    assert not can_rotate(SPEC, ParallelLayout.parse("tp16-pp3")), "8 KV heads on 16 ranks"
    assert can_rotate(SPEC, ParallelLayout.parse("tp8-pp3"))
    check_wanted("auto", SPEC, ParallelLayout.parse("pp2"), has_tier=False)
    for decode, has_tier, message in (
        ("pp2", True, "it has 2 stages"),
        ("tp16-pp3", True, "share KV heads"),
        ("pp4", False, "keeps no host tier"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_wanted("on", SPEC, ParallelLayout.parse(decode), has_tier=has_tier)
