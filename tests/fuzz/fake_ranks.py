"""`Ranks` without processes and sockets: every rank on a fake clock, seeded.

Messages pass through the real wire format. A rank takes them in order, a while after they were
sent, and reports a while after that; what a replica's ranks compute together is played by the
scheduler tests' worker model (`replica_model`), which fails at the first use of wrong, stale or
freed KV. A copy is open there from the step that begins it until the driver has taken the last
rank's report, so that blocks which are used before that are found, whatever the ranks' pace.

Ranks die as the scenario has it; those of their replica then wait for ever, or fail for want of a
peer.
"""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Callable, Sequence

from seesaw.engine.messages import (
    Failed,
    FromWorker,
    Inspect,
    Inspected,
    Ready,
    Setup,
    Step,
    StepReport,
    Stop,
    ToWorker,
    TransferReport,
)
from seesaw.engine.ranks import RankDied, RankSilent
from seesaw.engine.wire import decode, encode
from seesaw.scheduler.output import Load, SchedulerOutput
from tests.fuzz.clock import Clock
from tests.fuzz.costs import Order, weight_bytes
from tests.fuzz.fake_rank import PEER_GONE, FakeRank, told_report, told_step
from tests.fuzz.replica_model import Drawn, ReplicaModel
from tests.fuzz.scenario import Fault, Scenario

RANK_TIMEOUT_S = 6.0
"""How soon `Ranks` would miss a rank's answer."""

STEP_TIMEOUT_S = 60.0
"""SEESAW_STEP_TIMEOUT of the driver,"""

MOST_S = STEP_TIMEOUT_S / 3
"""so that nothing that a rank does may take longer."""


class Stuck(AssertionError):
    """The driver waits for a message that nobody will ever send."""


class FakeRanks:
    """The surface of `seesaw.engine.ranks.Ranks`, over all replicas of the scenario."""

    folder = "nowhere"

    def __init__(self, scenario: Scenario, clock: Clock, fault: Fault | None, salt: int) -> None:
        self.num_ranks = scenario.decode.num_ranks
        self.size = scenario.decode.replica.num_ranks
        self.scenario = scenario
        self.clock = clock
        self.fault = fault
        self.num_setups = 0
        self.was_killed: bool | None = None
        """How it was closed; None while it is open."""
        self.replicas: list[ReplicaModel] = []
        self.num_heard = 0
        """Messages that the driver has taken."""
        self.victims: set[int] = set()
        """Ranks that died or failed by themselves, the first cause of what follows."""
        self._rng = random.Random(f"{scenario.seed}/{salt}")
        self._inbox: deque[bytes] = deque()
        self._ranks = [FakeRank(rank) for rank in range(self.num_ranks)]
        if fault is not None and fault.kind == "killed at start":
            self._later(self._rng.choice((0.0, 0.2)), lambda: self._end(fault.rank, -9))

    # -- what the driver does ---------------------------------------------------------------------

    def set_up(self, rank: int, setup: Setup, files: Sequence[int]) -> None:
        own = self._ranks[rank]
        assert not own.doing, f"rank {rank} is set up with {own.doing} in flight"
        assert not own.copying, f"rank {rank} is set up with copies {own.copying} in flight"
        assert len(files) >= 1 + (setup.setup.tier is not None), files
        if rank == 0:
            self.num_setups += 1
            for one in self._ranks:
                one.is_ready = False
                one.copied_s.clear()
            count = self.num_ranks // self.size
            self.replicas = [
                ReplicaModel(self.scenario, self.size, self._rng) for _ in range(count)
            ]
        if own.ended_with is not None:
            raise RankDied(rank, own.ended_with)
        self.send(rank, setup)

    def send(self, rank: int, message: ToWorker) -> None:
        self.send_encoded([rank], encode(message))

    def send_encoded(self, ranks: Sequence[int], data: bytes) -> None:
        assert self.was_killed is None, "a message to ranks that are closed"
        message = decode(data)
        if isinstance(message, Step):
            replica = ranks[0] // self.size
            first = replica * self.size
            assert list(ranks) == list(range(first, first + self.size)), f"{ranks} of {replica}"
            self._take_step(replica, message.output)
            return
        for rank in ranks:
            self._take(self._ranks[rank], message)

    def receive(self, timeout_s: float | None = None) -> FromWorker | None:
        deadline_s = None if timeout_s is None else self.clock.now_s + timeout_s
        while True:
            assert self.was_killed is None, "waiting for ranks that are closed"
            if self._inbox:
                message: FromWorker = decode(self._inbox.popleft())
                self._hear(message)
                return message
            self._raise_if_lost()
            next_s = self.clock.next_s
            if next_s is None and not self.victims:
                raise Stuck(f"the driver waits and nothing will come: {self.describe()}")
            if deadline_s is not None and (next_s is None or next_s > deadline_s):
                self.clock.now_s = deadline_s
                return None
            assert self.clock.advance(), "the driver would wait for ever"

    def last_words(self, rank: int) -> str:
        return "is a fake one"

    def first_killed(self, within_s: float) -> RankDied | None:
        """Who dies of a signal until then; what comes meanwhile waits in the inbox."""
        deadline_s = self.clock.now_s + within_s
        while (next_s := self.clock.next_s) is not None and next_s <= deadline_s:
            if any(own.ended_with is not None for own in self._ranks):
                break
            self.clock.advance()
        for own in self._ranks:
            if own.ended_with is not None and own.ended_with < 0:
                return RankDied(own.rank, own.ended_with)
        return None

    def close(self, *, kill: bool = False) -> None:
        if self.was_killed is None:
            self.was_killed = kill
            self.clock.note(f"ranks are {'killed' if kill else 'closed'}")

    # -- what a rank does -------------------------------------------------------------------------

    def _take(self, own: FakeRank, message: ToWorker) -> None:
        answer: FromWorker
        if isinstance(message, Setup):
            own.setup = message.setup
            assert message.setup.rank == own.rank % self.size, "set up as another rank"
            assert message.setup.num_ranks == self.size
            own.num_done = 0
            answer = Ready(own.rank)
        elif isinstance(message, Inspect):
            assert own.setup is not None, "a look at what is not set up"
            answer = Inspected(
                rank=own.rank, phase="decode", param_hashes={}, device_bytes=0, rss_bytes=0
            )
        else:
            assert isinstance(message, Stop), message
            return
        self._work(own, self._spent(own, self.scenario.pace.step_s))
        self.clock.at(own.free_s, lambda: self._say(own, answer))

    def _take_step(self, replica: int, step: SchedulerOutput) -> None:
        self.clock.note(f"replica {replica}: {told_step(step)}")
        model = self.replicas[replica]
        drawn = model.take(step)
        for own in self._of(replica):
            assert own.is_ready, f"a step for rank {own.rank}, which is not ready"
            self._run(own, model, drawn)
        fault = self.fault
        if (
            fault is not None
            and fault.after_steps < model.num_steps
            and fault.rank // self.size == replica
        ):
            self.fault = None
            self._befall(fault)

    def _run(self, own: FakeRank, model: ReplicaModel, drawn: Drawn) -> None:
        """The rank's part of a step: its copies and its report, at times to come."""
        step, pace = drawn.step, self.scenario.pace
        own.doing.append(step)
        for transfer_id in step.awaits:
            own.free_s = max(own.free_s, own.copied_s.get(transfer_id, 0.0))
        begin_s = self._work(own, self._spent(own, pace.step_s))
        end_s = own.free_s
        for load in step.loads:
            self._copy(own, model, load, begin_s)
        for order in (*step.stores, *step.relays):
            self._copy(own, model, order, end_s)
        self.clock.at(end_s, lambda: self._finish(own, drawn, end_s - begin_s))

    def _work(self, own: FakeRank, seconds: float) -> float:
        """Keep the rank busy from when it has the message; returns that time."""
        delay_s = self._drawn(self.scenario.pace.message_s)
        begin_s = max(own.free_s, self.clock.now_s + delay_s)
        own.free_s = begin_s + seconds
        return begin_s

    def _copy(self, own: FakeRank, model: ReplicaModel, order: Order, begin_s: float) -> None:
        own.copying.add(order.transfer_id)
        for one in order.after if isinstance(order, Load) else ():
            begin_s = max(begin_s, own.copied_s.get(one, 0.0))
        seconds = self._spent(own, self.scenario.pace.copy_s)
        num_bytes, peer_bytes = model.bytes_of(own.rank % self.size, order)
        report = TransferReport(
            own.rank, order.transfer_id, num_bytes, seconds, begin_s, peer_bytes
        )

        def finish() -> None:
            model.copy_some()
            self._say(own, report)

        own.copied_s[order.transfer_id] = begin_s + seconds
        self.clock.at(begin_s + seconds, finish)

    def _finish(self, own: FakeRank, drawn: Drawn, busy_s: float) -> None:
        step = drawn.step
        if self._waits_for_peer(own):
            self._stop_for_peer(own, step)
            return
        own.num_done += 1
        assert own.setup is not None
        layout = own.setup.layout(step.phase)
        is_last = layout.coordinates(own.rank % self.size).pp == layout.pp - 1
        moved: dict[str, int] = {}
        if step.reshard:
            moved = weight_bytes(own.setup, step.phase, own.rank % self.size)
        report = StepReport(
            rank=own.rank,
            step_id=step.step_id,
            token_ids=drawn.token_ids if is_last else None,
            logprobs=drawn.logprobs if is_last else None,
            busy_s=busy_s * self._rng.random(),
            reshard_s=step.reshard * self._rng.choice((0.0, 1e-3, 1.0)),
            weight_bytes=moved,
        )
        self._say(own, report)

    def _say(self, own: FakeRank, message: FromWorker) -> None:
        """Send it now; it arrives behind what the rank said before."""
        if own.ended_with is not None or own.is_silent or self.was_killed is not None:
            return
        data = encode(message)
        own.heard_s = max(own.heard_s, self.clock.now_s + self._drawn(self.scenario.pace.message_s))
        self.clock.at(own.heard_s, lambda: self._inbox.append(data))

    def _hear(self, message: FromWorker) -> None:
        """The driver takes it now."""
        own = self._ranks[message.rank]
        self.num_heard += 1
        self.clock.note(f"heard from rank {own.rank}: {told_report(message)}")
        if isinstance(message, Ready):
            own.is_ready = True
        elif isinstance(message, StepReport):
            own.doing.popleft()
        elif isinstance(message, TransferReport):
            own.copying.discard(message.transfer_id)
            self.replicas[own.rank // self.size].confirmed(message.transfer_id)

    # -- faults -----------------------------------------------------------------------------------

    def _befall(self, fault: Fault) -> None:
        own, wait_s = self._ranks[fault.rank], self._rng.choice((0.0, 0.05, 0.2, 5.0))
        if fault.kind == "killed":
            self._later(wait_s, lambda: self._end(own.rank, -9))
        elif fault.kind == "ended":
            self._later(wait_s, lambda: self._end(own.rank, 3))
        elif fault.kind in ("frozen", "hung"):
            self._later(wait_s, lambda: self._stop(own, answers=fault.kind == "hung"))
        elif fault.kind in ("failed", "failed copy"):
            where = "moving KV or weights" if fault.kind == "failed copy" else "a step"
            self._later(wait_s, lambda: self._fail(own, where, "the seed says so"))

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        self.clock.after(seconds, lambda: act() if self.was_killed is None else None)

    def _end(self, rank: int, code: int) -> None:
        own = self._ranks[rank]
        if own.ended_with is None:
            self.clock.note(f"rank {rank} ends with {code}")
            own.ended_with = code
            if not own.is_silent:
                self.victims.add(rank)

    def _stop(self, own: FakeRank, *, answers: bool) -> None:
        """It lives and does nothing any more, but for answering pings."""
        if own.ended_with is None and not own.is_silent:
            self.clock.note(f"rank {own.rank} {'hangs' if answers else 'is frozen'}")
            own.is_silent = True
            self.victims.add(own.rank)
            if not answers:
                own.stopped_s = self.clock.now_s

    def _fail(self, own: FakeRank, where: str, error: str) -> None:
        """Its last words; the process ends a moment later."""
        if own.ended_with is not None or own.is_silent:
            return
        self.clock.note(f"rank {own.rank} fails: {error}")
        self._say(own, Failed(own.rank, where, f"RuntimeError: {error}", "Traceback ..."))
        if error != PEER_GONE:
            self.victims.add(own.rank)
        own.is_silent = own.has_failed = True
        said_s = max(own.heard_s, self.clock.now_s)
        self.clock.at(said_s + self._rng.random() * 0.1, lambda: self._end(own.rank, 1))

    def _waits_for_peer(self, own: FakeRank) -> bool:
        """A rank of its replica is gone that would have to run this step with it."""
        return any(
            peer.num_done <= own.num_done
            for peer in self._of(own.rank // self.size)
            if peer is not own and (peer.is_silent or peer.ended_with is not None)
        )

    def _stop_for_peer(self, own: FakeRank, step: SchedulerOutput) -> None:
        """For ever, or until its sockets say so."""
        if own.is_silent or own.ended_with is not None:
            return
        if self._rng.random() < 0.5:
            self._fail(own, f"step {step.step_id}", PEER_GONE)
        own.is_silent = True

    def _raise_if_lost(self) -> None:
        """As `Ranks` has it: who was killed rather than who ended because its peer had; and who has
        not answered for so long."""
        ended = [own for own in self._ranks if own.ended_with is not None]
        for own in sorted(ended, key=lambda one: ((one.ended_with or 0) >= 0, one.rank)):
            raise RankDied(own.rank, own.ended_with or 0)
        for own in self._ranks:
            if own.stopped_s is not None and self.clock.now_s - own.stopped_s > RANK_TIMEOUT_S:
                raise RankSilent(own.rank, os.getpid(), self.clock.now_s - own.stopped_s)

    # -- small things -----------------------------------------------------------------------------

    def _of(self, replica: int) -> list[FakeRank]:
        return self._ranks[replica * self.size : (replica + 1) * self.size]

    def _drawn(self, mean_s: float) -> float:
        return self._rng.expovariate(1.0) * mean_s

    def _spent(self, own: FakeRank, mean_s: float) -> float:
        pace = self.scenario.pace
        times = pace.slow_times if own.rank in pace.slow_ranks else 1.0
        return min(self._drawn(mean_s) * times, MOST_S)

    def culprits(self) -> set[int]:
        """Who may be named as the cause: who was killed, else anyone that failed or ended. Of a
        rank that was not killed the driver may hear after its peers, which lost it."""
        killed = {rank for rank in self.victims if (self._ranks[rank].ended_with or 0) < 0}
        if killed:
            return killed
        frozen = {own.rank for own in self._ranks if own.stopped_s is not None}
        if frozen:
            return frozen | {own.rank for own in self._ranks if own.has_failed}
        return self.victims | {own.rank for own in self._ranks if own.is_silent}

    @property
    def num_steps(self) -> int:
        """That the driver has sent, to all replicas."""
        return sum(model.num_steps for model in self.replicas)

    def activity(self, rank: int) -> str:
        return self._ranks[rank].activity

    def is_idle(self) -> bool:
        """The driver has heard of all that it ordered."""
        return not any(own.doing or own.copying for own in self._ranks)

    def describe(self) -> str:
        return "; ".join(f"rank {own.rank} in {own.activity}" for own in self._ranks)
