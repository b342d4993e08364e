"""What a scheduling policy is: the class that a user of `module.path:Class` writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from seesaw.scheduler.output import ModelOutput, SchedulerOutput

if TYPE_CHECKING:
    from seesaw.plan.cost_model import CostModel
    from seesaw.plan.lane_costs import LaneCosts
    from seesaw.plan.pair_times import PairTimes
    from seesaw.scheduler.config import SchedulerConfig
    from seesaw.scheduler.step import StepBuilder


class Policy(Protocol):
    """A scheduling policy: one small class, made from its frozen `Options` dataclass.

    `uses_tier = True` on the class says that it keeps KV in the host tier between phases; without
    it there is one layout and one phase. `splits_layers = True`: its rows may run some of the
    layers, so that ranks set memory aside for hidden states between steps. `for_experts = True`: it
    gains only where layers have experts. `num_lanes = 2`: its steps are in two lanes, which run
    beside each other on one device; `plan` is called for the lane `step.lane`. Only one of these
    three: a tier, layers that are split, lanes. It may also have
    `observe(step: SchedulerOutput, done: ModelOutput)`, which is told of each finished step, for
    those that decide by measured times.
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


@runtime_checkable
class UsesCosts(Protocol):
    """A policy that decides by what steps are predicted to cost."""

    def use_costs(self, costs: CostModel | str, config: SchedulerConfig) -> None:
        """Of its replica, before any step; or in words why they are not known and what to do.

        Raises ConfigError where it cannot do without, or with such costs.
        """
        ...


@runtime_checkable
class SharesDevice(Protocol):
    """A policy that splits a device between its lanes."""

    def share_by(self, costs: LaneCosts) -> None:
        """What steps cost on a part of the device, before any step."""
        ...
