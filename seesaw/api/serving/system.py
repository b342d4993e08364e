"""What a load is put on, and what is seen of it: an engine, or a simulation of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

from seesaw.api.serving.load import Load
from seesaw.latency import Timing
from seesaw.scheduler.counters import StepCounts
from seesaw.simulate.scenario import Scenario
from seesaw.simulate.simulation import simulate

Progress = Callable[[int, int], None]
"""Requests answered, requests in all."""
TILE = 128
"""Rows in which padded ones are counted: of SARATHI's tile rule."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """All requests of a load, answered. Seconds begin with the first arrival. `scheduler` are
    counters of the schedulers, summed, `counts` what their steps asked of the model; `answers` the
    drawn tokens, None where none were. `expert_loads`: how often the weights of an expert were
    read; `bubbles_s`: of each request, how long pipeline stages stood still before its steps. None
    where it was not counted."""

    timings: Sequence[Timing]
    input_tokens: int
    output_tokens: int
    scheduler: Mapping[str, int]
    counts: StepCounts
    answers: Sequence[Sequence[int]] | None = None
    expert_loads: float | None = None
    bubbles_s: Sequence[float] | None = None

    @property
    def elapsed_s(self) -> float:
        """From the first arrival to the last token."""
        return max(one.end_s for one in self.timings)


class System(Protocol):
    """`label` is the policy, as it was given. To be entered before it serves."""

    label: str

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def about(self) -> dict[str, Any]:
        """What was found of it, for the figures: which policy `auto` is, layouts, memory."""
        ...

    def serve(self, load: Load, progress: Progress) -> Served:
        """Put the load on; returns when all is answered."""
        ...


class Simulated:
    """Of the scenario all counts but its requests."""

    def __init__(self, label: str, scenario: Scenario) -> None:
        self.label = label
        self._scenario = scenario
        self._memory: Mapping[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def about(self) -> dict[str, Any]:
        prefill, decode = self._scenario.layouts
        return {
            "policy_run": self._scenario.config.resolve_policy(prefill != decode),
            "layouts": {"prefill": str(prefill), "decode": str(decode)},
            "memory": dict(self._memory),
        }

    def serve(self, load: Load, progress: Progress) -> Served:
        """Raises DoesNotFit, or RequestError where a request could never run."""
        scenario = replace(
            self._scenario, requests=load.requests, open_loop=True, times_tokens=True, tile=TILE
        )
        result = simulate(scenario, progress=progress)
        assert result.counts is not None, "the scenario asked for counts"
        self._memory = result.memory
        return Served(
            timings=result.timings,
            input_tokens=result.input_tokens,
            output_tokens=result.output_tokens,
            scheduler=result.scheduler,
            counts=result.counts,
            expert_loads=result.expert_loads,
            bubbles_s=result.samples["bubble"],
        )
