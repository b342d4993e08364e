"""One fake rank as the driver may know it, and what it says, in words."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from seesaw.engine.messages import Failed, FromWorker, RankSetup, StepReport, TransferReport
from seesaw.scheduler.output import SchedulerOutput, TokenLogprobs

PEER_GONE = "a peer is gone"


@dataclass(slots=True)
class FakeRank:
    """Times in seconds of the clock; `doing` and `copying` are what the driver has not heard of."""

    rank: int
    setup: RankSetup | None = None
    free_s: float = 0.0
    """When it is done with all that it was sent."""
    heard_s: float = 0.0
    """When its last message arrives at the driver: none overtakes another."""
    copied_s: dict[int, float] = field(default_factory=dict)
    """When each store and load is, or will be, complete here."""
    is_ready: bool = False
    doing: deque[SchedulerOutput] = field(default_factory=deque)
    copying: set[int] = field(default_factory=set)
    num_done: int = 0
    """Steps finished, whether the driver knows or not."""
    is_silent: bool = False
    """It waits for a peer that is gone, or has said its last words."""
    has_failed: bool = False
    stopped_s: float | None = None
    """When it was frozen."""
    ended_with: int | None = None
    """Its process's exit code; negative = a signal."""

    @property
    def activity(self) -> str:
        """What the driver must say that it was at."""
        if not self.is_ready:
            return "start-up (loading weights)"
        if self.doing:
            step = self.doing[0]
            if step.reshard:
                return f"the transition to {step.phase} (step {step.step_id})"
            return f"{step.phase} step {step.step_id}"
        if self.copying:
            return f"{len(self.copying)} KV stores or loads"
        return "no step (waiting for one)"


def logprobs_of(token: int, count: int, vocab_size: int) -> TokenLogprobs:
    """Of a drawn token, whoever drew it and when."""
    top = [(token + 1 + index) % vocab_size for index in range(min(count, vocab_size))]
    return TokenLogprobs(
        -(token + 1) / 8, token + 1, top, [-1.0 - index for index in range(len(top))]
    )


def told_step(step: SchedulerOutput) -> str:
    """A step in a line."""
    rows = [
        f"{row.request_id}[{row.token_start}:{row.token_start + row.num_tokens}]{'*' * row.samples}"
        for row in step.rows
    ]
    parts = [f"{'transition to ' * step.reshard}{step.phase} step {step.step_id}", *rows]
    parts += [f"store {s.transfer_id} of {s.request_id}" for s in step.stores]
    parts += [f"load {s.transfer_id} of {s.request_id}" for s in step.loads]
    parts += [f"{one} yields" for one in step.preempted]
    parts += [f"{one} is over" for one in step.finished]
    return ", ".join(parts)


def told_report(message: FromWorker) -> str:
    if isinstance(message, StepReport):
        return f"step {message.step_id} drew {message.token_ids}"
    if isinstance(message, TransferReport):
        return f"copy {message.transfer_id} is done"
    return type(message).__name__ + (f" {message.error}" if isinstance(message, Failed) else "")
