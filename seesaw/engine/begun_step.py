"""A step of `ModelRunner` between its beginning and its end: draws that are not read yet, and marks
that tell what took how long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from seesaw.engine.device_clock import DeviceClock, Mark
from seesaw.engine.messages import StepReport
from seesaw.engine.profile import StepClock
from seesaw.engine.request_state import RequestState
from seesaw.engine.sampler import PendingDraw

Cause = Literal["stage", "weights"]


class ModelStep:
    """A `BegunStep`. To be made where a change of layout has begun, inside the clock's scope. Given
    a `name` it reports its spans: those in which it computed, and between them those in which it
    waited, in the row `lane` of a trace."""

    def __init__(
        self,
        report: StepReport,
        clock: DeviceClock,
        profile: StepClock,
        name: str | None = None,
        lane: str = "compute",
    ) -> None:
        self._report = report
        self._clock = clock
        self._profile = profile
        self._name = name
        self._lane = lane
        self._draws: list[tuple[list[RequestState], PendingDraw]] = []
        self._waits: list[tuple[Mark, Mark, Cause]] = []
        self._visible: tuple[Mark, Mark, int] | None = None
        self._start = self._end = clock.mark()
        self.num_drawn = 0

    def add(self, requests: list[RequestState], draw: PendingDraw) -> None:
        """A draw of the step, of one token for each of `requests`."""
        for place, state in enumerate(requests):
            state.begin_draw(self.num_drawn + place)
        self.num_drawn += len(requests)
        self._draws.append((requests, draw))

    def waited(self, start: Mark, cause: Cause) -> None:
        """From `start` to now the rank did nothing but wait for the stage before it, or for weights
        of a layer."""
        self._waits.append((start, self._clock.mark(), cause))

    def entered(self, left: Mark) -> None:
        """The first layer of a phase begins, in whose layout nothing was computed before; that of
        the phase before was left with `left`."""
        self._visible = left, self._clock.mark(), len(self._waits)

    def close(self) -> None:
        """All of the step was handed over."""
        self._end = self._clock.mark()

    def is_done(self) -> bool:
        return self._end.is_done()

    def finish(self) -> StepReport:
        report = self._report
        self._end.wait()
        for requests, draw in self._draws:
            tokens, logprobs = draw.finish()
            for state, token in zip(requests, tokens, strict=True):
                state.learn(token)
            assert report.token_ids is not None, "the last stage draws"
            if logprobs is not None or report.logprobs is not None:
                earlier = report.logprobs or [None] * len(report.token_ids)
                report.logprobs = earlier + (logprobs or [None] * len(tokens))
            report.token_ids += tokens
        seconds = self._clock.seconds
        waits = [(seconds(start, end), cause) for start, end, cause in self._waits]
        waited_s = sum(wait_s for wait_s, _ in waits)
        report.busy_s = max(0.0, seconds(self._start, self._end) - waited_s)
        report.stage_wait_s = sum(wait_s for wait_s, cause in waits if cause == "stage")
        report.reshard_s += sum(wait_s for wait_s, cause in waits if cause == "weights")
        if self._visible is not None:
            left, entered, before = self._visible
            bubble_s = sum(wait_s for wait_s, cause in waits[:before] if cause == "stage")
            report.visible_s = max(0.0, seconds(left, entered) - bubble_s)
        if self._name is not None:
            report.spans += self._spans(self._name)
        self._profile.mark("stores and rest")
        report.parts = self._profile.end()
        return report

    def _spans(self, name: str) -> Iterator[tuple[str, str, float, float]]:
        """One after another from its beginning to its end."""
        at_s = self._clock.time_s
        last_s = at_s(self._start)
        for start, end, cause in self._waits:
            start_s, end_s = at_s(start), at_s(end)
            yield self._lane, name, last_s, start_s
            what = "wait" if cause == "stage" else "wait for weights"
            yield self._lane, f"{what} {name.rpartition(' ')[2]}", start_s, end_s
            last_s = end_s
        yield self._lane, name, last_s, at_s(self._end)
