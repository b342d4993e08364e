"""What a scheduling policy is: the class that a user of `module.path:Class` writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from seesaw.scheduler.output import ModelOutput, SchedulerOutput

if TYPE_CHECKING:
    from seesaw.plan.pair_times import PairTimes
    from seesaw.scheduler.step import StepBuilder


class Policy(Protocol):
    """A scheduling policy: one small class, made from its frozen `Options` dataclass.

    `uses_tier = True` on the class says that it keeps KV in the host tier between phases; without
    it there is one layout and one phase. It may also have `observe(step: SchedulerOutput, done:
    ModelOutput)`, which is told of each finished step, for those that decide by measured times.
    """

    Options: type[Any]

    def __init__(self, options: Any) -> None: ...

    def plan(self, step: StepBuilder) -> None:
        """Fill one step. Called when the engine can issue another one; may leave it empty."""
        ...


@runtime_checkable
class Observer(Protocol):
    """A policy that wants to hear of finished steps."""

    def observe(self, step: SchedulerOutput, done: ModelOutput) -> None: ...


@runtime_checkable
class Redecides(Protocol):
    """A policy that may change its mind on taking turns between two layouts."""

    def redecide_by(self, times: PairTimes) -> None:
        """What a plan predicts, before any step."""
        ...
