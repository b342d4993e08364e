"""Faults of the driver that the fuzz must find: each takes the place of a method while it is
planted, and does what an honest mistake would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from seesaw.engine import engine
from seesaw.engine.merger import Merger
from seesaw.engine.messages import Step
from seesaw.engine.output_processor import OutputProcessor
from seesaw.engine.rank_executor import RankExecutor
from seesaw.engine.replicas import Replicas
from seesaw.engine.wire import decode
from seesaw.scheduler.output import TransferDone
from seesaw.scheduler.policies.seesaw import Seesaw
from seesaw.scheduler.residency import Residency
from seesaw.scheduler.step import StepBuilder

Method = Callable[..., Any]
Planted = tuple[Any, str, Callable[[Method], Method]]
"""The class, its method, and what makes the faulty one of it."""


def _without_last_rank(method: Method) -> Method:
    """Done as soon as all ranks but one have said so; the last one is not awaited."""

    def add(self: Merger, report: Any) -> Any:
        if report.rank % self._num_ranks == self._num_ranks - 1 and self._num_ranks > 1:
            return None
        self._num_ranks -= 1
        try:
            return method(self, report)
        finally:
            self._num_ranks += 1

    return add


def _first_bytes(method: Method) -> Method:
    """Counts one rank's bytes for all."""

    def add(self: Merger, report: Any) -> Any:
        done = method(self, report)
        return None if done is None else done._replace(num_bytes=report.num_bytes)

    return add


def _reversed_tokens(method: Method) -> Method:
    def add(self: Merger, report: Any) -> Any:
        done = method(self, report)
        if done is not None:
            done.token_ids.reverse()
        return done

    return add


def _free_at_once(method: Method) -> Method:
    """Blocks of ended requests, though steps in flight still use them."""

    def release_drained(self: Residency) -> None:
        oldest, self.oldest_steps = self.oldest_steps, [2**62]
        try:
            method(self)
        finally:
            self.oldest_steps = oldest

    return release_drained


def _free_while_copied(method: Method) -> Method:
    """Blocks of ended requests, though a copy of them is under way."""

    def release_drained(self: Residency) -> None:
        for request in self.draining:
            request.transfers.clear()
        method(self)

    return release_drained


def _free_tier_early(method: Method) -> Method:
    """When a load begins, not when it is complete."""

    def load(self: Residency, request: Any, *rest: Any) -> Any:
        order = method(self, request, *rest)
        self._release_tier(request)
        return order

    return load


def _keep_tier(_: Method) -> Method:
    def release_tier(self: Residency, request: Any) -> None:
        request.tier_blocks = []

    return release_tier


def _forget_to_tell(_: Method) -> Method:
    """Stages before the last never hear what was drawn."""

    def tell(self: StepBuilder, request: Any) -> None:
        request.num_known = len(request.tokens)

    return tell


def _all_but_one_rank(method: Method) -> Method:
    """A replica's last rank is not sent the step."""

    def submit(self: RankExecutor, step: Any, replica: int = 0) -> None:
        send = self._ranks.send_encoded
        with mock.patch.object(
            self._ranks, "send_encoded", lambda ranks, data: send(list(ranks)[:-1] or ranks, data)
        ):
            method(self, step, replica)

    return submit


def _steps_overtake(method: Method) -> Method:
    """Of two steps that are sent one after the other the second goes first."""

    def submit(self: RankExecutor, step: Any, replica: int = 0) -> None:
        send, held = self._ranks.send_encoded, self.__dict__.setdefault("held", {})

        def sending(ranks: Any, data: bytes) -> None:
            message = decode(data)
            if isinstance(message, Step) and message.output.step_id % 7 == 3:
                held[replica] = data
                return
            send(ranks, data)
            if replica in held:
                send(ranks, held.pop(replica))

        with mock.patch.object(self._ranks, "send_encoded", sending):
            method(self, step, replica)

    return submit


def _first_replica_only(_: Method) -> Method:
    """What came back is told to the first scheduler."""

    def take(self: Replicas, replica: int, done: Any) -> Any:
        return [] if isinstance(done, TransferDone) else self._schedulers[0].update(done).advanced

    return take


def _first_is_woken(method: Method) -> Method:
    """Steps are planned for the first replica only."""

    def issue(self: Replicas) -> None:
        schedulers = self._schedulers
        self._schedulers = schedulers[:1]
        try:
            method(self)
        finally:
            self._schedulers = schedulers

    return issue


def _last_step_named(_: Method) -> Method:
    """The step that was sent last, not the one that the rank was at."""

    def activity(self: RankExecutor, rank: int) -> str:
        if rank in self._starting:
            return "start-up (loading weights)"
        return self._doing[rank][-1][1] if self._doing[rank] else "no step (waiting for one)"

    return activity


def _no_drain(_: Method) -> Method:
    return lambda self: None


def _same_seed(method: Method) -> Method:
    """For all answers of a request."""
    return lambda seed, request_id, sampling, index: method(seed, request_id, sampling, 0)


def _shown_twice(method: Method) -> Method:
    """An answer that ended is given out again with the next ones."""

    def process(self: OutputProcessor, changed: Any, finish: Any) -> Any:
        outputs = method(self, changed, finish)
        again = self.__dict__.get("again", []) if hasattr(self, "__dict__") else []
        self.__dict__["again"] = [one for one in outputs if one.finished and len(outputs) > 1]
        return outputs + again

    return process


def _leaves_early(_: Method) -> Method:
    """To decode as soon as there is something to decode, though more prompts fit the tier."""
    return lambda self, step: bool(step.stored or step.running)


PLANTED: dict[str, Planted] = {
    "a rank's confirmation of a copy is not awaited": (
        Merger, "add_transfer", _without_last_rank,
    ),
    "a rank's report of a step is not awaited": (Merger, "add_step", _without_last_rank),
    "bytes of one rank stand for all": (Merger, "add_transfer", _first_bytes),
    "tokens in the wrong order": (Merger, "add_step", _reversed_tokens),
    "blocks are free while steps use them": (Residency, "release_drained", _free_at_once),
    "blocks are free while they are copied": (Residency, "release_drained", _free_while_copied),
    "tier blocks are free before they are read": (Residency, "load", _free_tier_early),
    "tier blocks are never free": (Residency, "_release_tier", _keep_tier),
    "first stages are not told tokens": (StepBuilder, "_tell", _forget_to_tell),
    "a step is not sent to one rank": (RankExecutor, "submit", _all_but_one_rank),
    "steps overtake each other": (RankExecutor, "submit", _steps_overtake),
    "events go to the wrong replica": (Replicas, "_take", _first_replica_only),
    "a replica is not woken": (Replicas, "issue", _first_is_woken),
    "the wrong step is named": (RankExecutor, "_activity", _last_step_named),
    "kept ranks are not drained": (RankExecutor, "_drain", _no_drain),
    "answers of a request draw alike": (engine, "draw_seed", _same_seed),
    "an answer is given out twice": (OutputProcessor, "process", _shown_twice),
    "the phase changes too often": (Seesaw, "leaves_prefill", _leaves_early),
}  # fmt: skip


@contextmanager
def planted(name: str) -> Iterator[None]:
    owner, method, make = PLANTED[name]
    with mock.patch.object(owner, method, make(getattr(owner, method))):
        yield
