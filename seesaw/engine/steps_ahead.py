"""Runs the steps that one rank is handed, in order: a step is begun while the one before it still
runs on the device, and each is reported when it is done.

Owns which steps are under way, nothing of what they compute. Where the device is the host itself, a
step is reported before the next one is begun.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from seesaw.engine.messages import StepReport
from seesaw.scheduler.output import SchedulerOutput

LOOK_S = 50e-6
"""How often the device is asked whether a step is done while no other step is there: little beside
a step, which takes milliseconds, and too seldom to keep a core busy."""


class BegunStep(Protocol):
    """A step that the device has been handed."""

    def is_done(self) -> bool:
        """Whether `finish` would return at once."""
        ...

    def finish(self) -> StepReport:
        """Wait for it; once, in the order in which steps were begun."""
        ...


class Runner(Protocol):
    """`steps_ahead`: most steps under way when another one is begun."""

    steps_ahead: int

    def needs_results(self, step: SchedulerOutput) -> bool:
        """Whether `step` can be begun only when all before it are finished."""
        ...

    def begin(self, step: SchedulerOutput) -> BegunStep: ...


class StepsAhead:
    """`report` is called with each finished step, in order."""

    def __init__(self, runner: Runner, report: Callable[[StepReport], None]) -> None:
        self._runner = runner
        self._report = report
        self._begun: deque[tuple[str, BegunStep]] = deque()
        self.doing = "no step"
        """Which step was begun or waited for last, for people."""

    def begin(self, step: SchedulerOutput) -> None:
        """Begin `step` as soon as it can be; report what is done meanwhile.

        Where it cannot be begun, the steps before it are reported before the error is raised.
        """
        what = f"{step.phase} step {step.step_id}"
        most = self._runner.steps_ahead
        if self._begun and self._runner.needs_results(step):
            most = 0
        while len(self._begun) > most:
            self._finish_oldest()
        self.doing = what
        try:
            begun = self._runner.begin(step)
        except BaseException:
            self.settle()
            self.doing = what
            raise
        self._begun.append((what, begun))
        self._report_done()

    def work_until(self, arrived: Callable[[], bool]) -> None:
        """Report steps as they are done, until `arrived()` or none is left."""
        while self._begun and not arrived():
            if self._begun[0][1].is_done():
                self._finish_oldest()
            else:
                time.sleep(LOOK_S)

    def settle(self) -> None:
        """Finish and report all that was begun."""
        while self._begun:
            self._finish_oldest()

    def _report_done(self) -> None:
        while self._begun and self._begun[0][1].is_done():
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        self.doing, begun = self._begun.popleft()
        self._report(begun.finish())
