"""Policies by name, from outside the package, and what `StepBuilder` refuses them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from seesaw.errors import ConfigError
from seesaw.sampling_params import SamplingParams
from seesaw.scheduler import policies
from seesaw.scheduler.output import ModelOutput
from seesaw.scheduler.policies.continuous import Continuous
from seesaw.scheduler.request import Request
from seesaw.scheduler.scheduler import Scheduler, SchedulerConfig
from seesaw.scheduler.step import StepBuilder

ROOMY = SchedulerConfig(
    num_blocks=16, block_size=4, num_layers=2, max_model_len=64, max_num_seqs=4,
    max_num_batched_tokens=8,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    pass


class Planned:
    """A policy that calls a function."""

    Options = NoOptions

    def __init__(self, plan: Callable[[StepBuilder], object]) -> None:
        self._plan = plan

    def plan(self, step: StepBuilder) -> None:
        self._plan(step)


def scheduler_of(plan: Callable[[StepBuilder], object], *prompt_lens: int) -> Scheduler:
    scheduler = Scheduler(ROOMY, Planned(plan))
    for index, length in enumerate(prompt_lens):
        prompt = [100 * (index + 1) + offset for offset in range(length)]
        scheduler.add(
            Request(
                str(index), prompt, SamplingParams(), seed=0, eos_token_ids=(), max_model_len=64
            )
        )
    return scheduler


# -- by name --------------------------------------------------------------------------------------


def test_the_built_in_policy_by_name() -> None:
    assert policies.get("continuous") is Continuous
    assert isinstance(policies.make("continuous", {"max_prefill_chunk": 64}), Continuous)


def test_every_built_in_policy_loads_and_explains_its_options() -> None:
    for name in policies.BUILT_IN:
        policies.make(name, {})
        assert all(f.metadata.get("help") for f in fields(policies.get(name).Options)), name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("continous", "unknown policy 'continous'. Did you mean 'continuous'"),
        ("", "unknown policy ''"),
        (":Fifo", "unknown policy ':Fifo'"),
        (".mine:Fifo", "unknown policy '.mine:Fifo'"),
        ("my policy", "module.path:Class of your own"),
        ("json:", "unknown policy 'json:'"),
        ("no_such_module_here:Fifo", "Put the folder of no_such_module_here.py on PYTHONPATH"),
        ("json:Fifo", "cannot be loaded: module 'json' has no attribute 'Fifo'"),
        ("json:JSONDecoder", "expected a class with a dataclass `Options` and `plan"),
        ("json:dumps", "expected a class with a dataclass `Options` and `plan"),
    ],
)
def test_names_that_lead_nowhere(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        policies.get(name)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_prefil_chunk": 4}, "no option 'max_prefil_chunk'. Did you mean 'max_prefill_chunk'"),
        ({"speed": 4}, "Known: max_prefill_chunk, block_watermark"),
        ({"max_prefill_chunk": -1}, "max_prefill_chunk=-1: expected tokens"),
        ({"max_prefill_chunk": 1.5}, "max_prefill_chunk=1.5: expected tokens"),
        ({"max_prefill_chunk": True}, "max_prefill_chunk=True: expected tokens"),
        ({"block_watermark": 1}, "block_watermark=1: expected a fraction"),
        ({"block_watermark": -0.1}, "block_watermark=-0.1: expected a fraction"),
        ({"block_watermark": float("nan")}, "block_watermark=nan: expected a fraction"),
        ({"block_watermark": "0.5"}, "block_watermark='0.5': expected a fraction"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        policies.make("continuous", options)
    assert message in str(error.value)


OUTSIDE = '''
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LastOptions:
    chunk: int


class LastInFirstOut:
    """The newest request runs alone."""

    Options = LastOptions

    def __init__(self, options):
        self.chunk = options.chunk

    def plan(self, step):
        if not step.running:
            step.admit(step.waiting[-1])
        step.schedule(step.running[0], self.chunk)


class NoDataclass(LastInFirstOut):
    Options = dict
'''


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module of policies that no package of seesaw knows."""
    (tmp_path / "somebodys_policies.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "somebodys_policies"
    sys.modules.pop("somebodys_policies", None)


def test_a_policy_from_outside_decides_what_runs(outside: str) -> None:
    policy = policies.make(f"{outside}:LastInFirstOut", {"chunk": 2})
    scheduler = scheduler_of(policy.plan, 3, 3)
    step = scheduler.schedule()
    assert step is not None
    assert [(row.request_id, row.num_tokens) for row in step.rows] == [("1", 2)]


def test_a_policy_from_outside_is_asked_for_its_options(outside: str) -> None:
    with pytest.raises(ConfigError, match="needs the option 'chunk'"):
        policies.make(f"{outside}:LastInFirstOut", {})
    with pytest.raises(ConfigError, match=r"no option 'chunks'\. Did you mean 'chunk'"):
        policies.make(f"{outside}:LastInFirstOut", {"chunk": 1, "chunks": 2})
    with pytest.raises(ConfigError, match="a dataclass `Options`"):
        policies.make(f"{outside}:NoDataclass", {})


# -- what a policy cannot do ----------------------------------------------------------------------


def test_budgets_hold_whatever_a_policy_asks_for() -> None:
    def greedy(step: StepBuilder) -> None:
        for request in list(step.waiting):
            step.admit(request)
        for request in step.running:
            assert step.schedule(request, 10**9)

    step = scheduler_of(greedy, 5, 5, 5, 5, 5).schedule()
    assert step is not None
    assert [(row.request_id, row.num_tokens) for row in step.rows] == [("0", 5), ("1", 3)]
    assert [new.request_id for new in step.new_requests] == ["0", "1", "2", "3"], "max_num_seqs"


def test_a_request_that_does_not_fit_is_left_waiting_and_takes_nothing() -> None:
    answers: list[bool] = []

    def plan(step: StepBuilder) -> None:
        first, second = list(step.waiting)
        answers.append(step.admit(first))
        step.schedule(first, 8)
        free = step.num_free_blocks
        answers.append(step.admit(second))
        answers.append(step.num_free_blocks == free and second in step.waiting)

    scheduler_of(plan, 40, 25).schedule()
    assert answers == [True, False, True]


def test_a_policy_that_stalls_is_named() -> None:
    scheduler = scheduler_of(lambda step: None, 3)
    with pytest.raises(AssertionError, match="planned nothing although nothing is in flight"):
        scheduler.schedule()


def test_an_empty_plan_is_fine_while_a_step_is_in_flight() -> None:
    plans = [Continuous(Continuous.Options()).plan, lambda step: None]
    scheduler = scheduler_of(lambda step: plans.pop(0)(step), 3)
    step = scheduler.schedule()
    assert step is not None
    assert scheduler.schedule() is None
    scheduler.update(ModelOutput(step.step_id, [5]))


def admit_first(step: StepBuilder) -> Request:
    request = step.waiting[0]
    assert step.admit(request)
    return request


def admit_without_a_row(step: StepBuilder) -> None:
    admit_first(step)


def two_rows(step: StepBuilder) -> None:
    request = admit_first(step)
    step.schedule(request, 2)
    step.schedule(request, 2)


def admit_twice(step: StepBuilder) -> None:
    step.admit(admit_first(step))


def run_what_waits(step: StepBuilder) -> None:
    step.schedule(step.waiting[0], 2)


def preempt_what_waits(step: StepBuilder) -> None:
    step.preempt(step.waiting[0])


def preempt_what_has_a_row(step: StepBuilder) -> None:
    request = admit_first(step)
    step.schedule(request, 2)
    step.preempt(request)


def preempt_what_was_admitted(step: StepBuilder) -> None:
    step.preempt(admit_first(step))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (admit_without_a_row, "admitted and not run"),
        (two_rows, "has a row in this step already"),
        (admit_twice, "does not wait"),
        (run_what_waits, "does not run"),
        (preempt_what_waits, "does not run"),
        (preempt_what_has_a_row, "has a row in the step being planned"),
        (preempt_what_was_admitted, "was admitted in the step being planned"),
    ],
)
def test_mistakes_of_a_policy_are_named(plan: Callable[[StepBuilder], None], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        scheduler_of(plan, 5, 5).schedule()
