"""Runs steps on worker processes, one per device: sends each step to all ranks of its replica,
merges what they report, and names rank and phase where one fails.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from seesaw import envs
from seesaw.engine.executor import Hear
from seesaw.engine.merger import Merger
from seesaw.engine.messages import (
    Failed,
    FromWorker,
    Inspect,
    Inspected,
    RankSetup,
    Ready,
    Setup,
    Step,
    StepReport,
    TransferReport,
)
from seesaw.engine.ranks import RankLost, Ranks
from seesaw.engine.watchdog import LOOK_S, Watchdog
from seesaw.engine.wire import encode
from seesaw.errors import EngineDeadError
from seesaw.scheduler.output import ModelOutput, SchedulerOutput, TransferDone

ROOT_CAUSE_S = 1.0
"""How long a failed rank's peers are watched: a rank that was killed makes its peers fail too, and
they may be heard first."""


class RankExecutor:
    """`setups` and `files` (of weights and tier) have one entry per rank, replica by replica, each
    of `setups[0].num_ranks` ranks.

    Takes over `ranks`, and ends them with `shutdown` unless `keep_ranks` (for those who set up the
    same processes again). `released`: called when ranks are gone or no longer need their files.
    """

    def __init__(
        self,
        ranks: Ranks,
        setups: Sequence[RankSetup],
        files: Sequence[Sequence[int]],
        *,
        keep_ranks: bool = False,
        released: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.hear: Hear | None = None
        self._ranks = ranks
        self._keep_ranks = keep_ranks
        self._released = released
        self._size = setups[0].num_ranks
        self._mergers = [Merger(self._size) for _ in range(len(setups) // self._size)]
        self._doing: list[deque[tuple[int, str]]] = [deque() for _ in setups]
        self._copying: list[set[int]] = [set() for _ in setups]
        self._starting = set(range(len(setups)))
        self._step_timeout_s = envs.step_timeout_s()
        self._watchdog = Watchdog(len(setups), clock)
        self._dead: EngineDeadError | None = None
        self._shut_down = False
        try:
            for rank, setup in enumerate(setups):
                ranks.set_up(rank, Setup(setup), files[rank])
        except RankLost as lost:
            self._fail(lost.rank, str(lost), lost)

    def wait_ready(self) -> None:
        """Until all ranks hold their weights. Raises EngineDeadError."""
        while self._starting:
            message = self._receive()
            assert isinstance(message, Ready), message
            self._starting.discard(message.rank)

    def submit(self, step: SchedulerOutput, replica: int = 0) -> None:
        """Send the step to all ranks of the replica."""
        what = f"{step.phase} step {step.step_id}"
        if step.reshard:
            what = f"the transition to {step.phase} (step {step.step_id})"
        first = replica * self._size
        ranks = range(first, first + self._size)
        moves = [store.transfer_id for store in step.stores]
        moves += [load.transfer_id for load in step.loads]
        moves += [relay.transfer_id for relay in step.relays]
        for rank in ranks:
            self._doing[rank].append((step.step_id, what))
            self._copying[rank].update(moves)
            self._watchdog.owe(rank)
        self._ranks.send_encoded(ranks, encode(Step(step)))

    def collect(self) -> tuple[int, ModelOutput | TransferDone]:
        """Wait for a step or transfer that all ranks of its replica have finished."""
        while True:
            message = self._receive()
            assert isinstance(message, StepReport | TransferReport), message
            if self.hear is not None:
                self.hear(message)
            replica = message.rank // self._size
            done: ModelOutput | TransferDone | None
            if isinstance(message, StepReport):
                step_id, _ = self._doing[message.rank].popleft()
                assert step_id == message.step_id, f"rank {message.rank} left a step out"
                done = self._mergers[replica].add_step(message)
            else:
                self._copying[message.rank].discard(message.transfer_id)
                done = self._mergers[replica].add_transfer(message)
            busy = bool(self._doing[message.rank] or self._copying[message.rank])
            self._watchdog.heard(message.rank, still_owes=busy)
            if done is not None:
                return replica, done

    def inspect(self) -> list[Inspected]:
        """Parameter hashes and memory of every rank; nothing may be in flight."""
        for rank in range(len(self._doing)):
            self._ranks.send(rank, Inspect())
        found: dict[int, Inspected] = {}
        while len(found) < len(self._doing):
            message = self._receive()
            assert isinstance(message, Inspected), message
            found[message.rank] = message
        return [found[rank] for rank in sorted(found)]

    @property
    def weight_bytes(self) -> Mapping[str, int]:
        total: Counter[str] = Counter()
        for merger in self._mergers:
            total.update(merger.weight_bytes)
        return total

    def describe(self) -> list[str]:
        return [
            f"rank {rank}: in {self._activity(rank)}, {len(doing)} steps and "
            f"{len(self._copying[rank])} stores or loads in flight; it "
            f"{self._ranks.last_words(rank)}"
            for rank, doing in enumerate(self._doing)
        ]

    def shutdown(self) -> None:
        if self._shut_down:
            return
        self._shut_down = True
        if self._keep_ranks:
            self._drain()
        if self._dead is not None or not self._keep_ranks:
            self._ranks.close(kill=self._dead is not None)
        self._released()

    def _drain(self) -> None:
        """Hear of all that is in flight, so that the next to use the ranks does not."""
        with contextlib.suppress(EngineDeadError):
            self.wait_ready()
            while any(self._doing) or any(self._copying):
                self.collect()

    # -- inside -----------------------------------------------------------------------------------

    def _receive(self) -> FromWorker:
        if self._dead is not None:
            raise self._dead
        message: FromWorker | None = None
        try:
            while message is None:
                self._look()
                message = self._ranks.receive(LOOK_S)
        except RankLost as lost:
            self._fail(lost.rank, str(lost), lost)
        if isinstance(message, Failed):
            killed = self._ranks.first_killed(ROOT_CAUSE_S)
            if killed is not None:
                self._fail(killed.rank, str(killed), killed)
            self._fail(
                message.rank,
                f"rank {message.rank} failed ({message.where}): {message.error}\n"
                f"{message.traceback}",
            )
        return message

    def _look(self) -> None:
        """Whether ranks still get on with what they were given."""
        silent_s = self._watchdog.look()
        most_s = max(silent_s)
        if not self._step_timeout_s or most_s <= self._step_timeout_s:
            return
        rank = silent_s.index(most_s)
        self._fail(
            rank,
            f"rank {rank} answers but has finished nothing for {most_s:.0f} s "
            f"(SEESAW_STEP_TIMEOUT; it {self._ranks.last_words(rank)})",
        )

    def _fail(self, rank: int, what: str, cause: BaseException | None = None) -> NoReturn:
        """End everything: the other ranks wait for one that is gone."""
        self._dead = EngineDeadError(f"{what}; it was in {self._activity(rank)}.")
        self._ranks.close(kill=True)
        raise self._dead from cause

    def _activity(self, rank: int) -> str:
        if rank in self._starting:
            return "start-up (loading weights)"
        if self._doing[rank]:
            return self._doing[rank][0][1]
        if self._copying[rank]:
            return f"{len(self._copying[rank])} KV stores or loads"
        return "no step (waiting for one)"
