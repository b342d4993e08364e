"""A pair of layouts is decided on anew when requests turn out to have other lengths: that it gains
there, and never loses on the job that was expected."""

from __future__ import annotations

from typing import Any

import pytest

from seesaw.config import EngineConfig
from seesaw.layout.parallel import ParallelLayout
from seesaw.plan.choice import LayoutChoice
from seesaw.plan.demand import Demand
from seesaw.plan.estimate import Estimate, Estimator
from seesaw.plan.machine import Machine
from seesaw.plan.memory import Space, plan_memory
from seesaw.plan.pair_times import PairTimes, pair_times
from seesaw.plan.transition import planned_bytes
from seesaw.plan.workload import Lengths
from seesaw.simulate.results import Result
from seesaw.simulate.simulation import Arrival, Scenario, simulate
from tests.plan.devices import make_device, make_links, make_machine
from tests.plan.models import spec_of

PROMPT, EXPECTED, COUNT = 512, 8, 120
SPEC = spec_of("tiny", num_hidden_layers=12, vocab_size=64)
SETTINGS: dict[str, Any] = {
    "model": "m", "max_model_len": 1280, "max_num_seqs": 16, "max_num_batched_tokens": 256,
    "host_kv_memory": "256MiB", "policy": "seesaw",
}  # fmt: skip


@pytest.fixture(scope="module")
def machine() -> Machine:
    """Steps wait for weights whatever is in them, and for all-reduces of prompts: two stages
    compute these faster, but beside answers they come for half of that."""
    device = make_device(memory_bytes_per_s=1e9, load_bytes_per_s=1e9, store_bytes_per_s=1e9)
    return make_machine(device, 2, make_links(bus=3.3e8, peer=1e9))


@pytest.fixture(scope="module")
def chosen(machine: Machine) -> tuple[Estimate, PairTimes]:
    """A pair, and what is predicted of it for other lengths."""
    pair = LayoutChoice(ParallelLayout(pp=2), ParallelLayout(tp=2), "a test's")
    config = EngineConfig(**SETTINGS)
    memory = plan_memory(config, SPEC, 2, Space.of(machine), pair, True)
    expected = Demand.of([Lengths(PROMPT, EXPECTED)], COUNT)
    estimator = Estimator(SPEC, machine, expected, "float16", config)
    moved = planned_bytes(SPEC, 2, pair.prefill, pair.decode, config, machine.kind)
    chunk = config.step_tokens
    one = estimator.estimate(pair.prefill, pair.decode, "seesaw", chunk, memory, moved)
    times = pair_times(estimator, one, moved)
    assert times is not None
    ratio = EXPECTED / PROMPT
    assert times.turns(ratio) < times.decode_only(ratio), "a pair that nobody would choose"
    return one, times


def run(
    machine: Machine, one: Estimate, times: PairTimes | None, answers: list[int], **options: Any
) -> Result:
    """Requests whose answers end when they end, as far as the policy knows."""
    return simulate(
        Scenario(
            spec=SPEC,
            machine=machine,
            layouts=(one.prefill, one.decode),
            config=EngineConfig(**SETTINGS, policy_options=options),
            requests=[Arrival(0.0, PROMPT, answer) for answer in answers],
            answers_known=False,
            max_tokens=700,
            times=times,
            debug=True,
        )
    )


def test_answers_that_leave_room_for_prompts_are_computed_in_one_layout(
    machine: Machine, chosen: tuple[Estimate, PairTimes]
) -> None:
    one, times = chosen
    long = [4 * EXPECTED] * 400
    kept = run(machine, one, None, long)
    anew = run(machine, one, times, long)
    assert anew.scheduler["num_redecisions"] == 1
    assert anew.num_transitions < kept.num_transitions
    assert anew.elapsed_s < kept.elapsed_s / 1.1
    never = run(machine, one, times, long, redecide=False)
    assert never.elapsed_s == kept.elapsed_s


@pytest.mark.parametrize("answer", [1, 2, EXPECTED, 2 * EXPECTED])
def test_nothing_is_lost_on_what_was_expected(
    machine: Machine, chosen: tuple[Estimate, PairTimes], answer: int
) -> None:
    one, times = chosen
    kept = run(machine, one, None, [answer] * COUNT)
    anew = run(machine, one, times, [answer] * COUNT)
    assert anew.elapsed_s <= kept.elapsed_s * 1.03
    assert anew.scheduler["num_redecisions"] <= 1


def test_it_goes_back_when_answers_are_short_again(
    machine: Machine, chosen: tuple[Estimate, PairTimes]
) -> None:
    one, times = chosen
    answers = [32 * EXPECTED] * 60 + [2] * 500
    anew = run(machine, one, times, answers)
    assert anew.scheduler["num_redecisions"] == 2
    assert anew.elapsed_s < run(machine, one, None, answers).elapsed_s * 1.03
