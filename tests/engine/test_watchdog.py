"""Who is given up and who is not, on a clock that tests move."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from seesaw.engine import dump
from seesaw.engine.last_words import describe
from seesaw.engine.messages import Ready, StepReport
from seesaw.engine.rank_executor import RankExecutor
from seesaw.engine.watchdog import LOOK_S, MOST_PER_LOOK_S, Watchdog
from seesaw.errors import EngineDeadError, HostMemoryError
from seesaw.scheduler.output import SchedulerOutput


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def look(watchdog: Watchdog, clock: Clock, seconds: float) -> list[float]:
    """As a driver does that waits for so long."""
    found: list[float] = []
    for _ in range(round(seconds / LOOK_S)):
        clock.now_s += LOOK_S
        found = watchdog.look()
    return found


def test_only_what_is_owed_counts() -> None:
    clock = Clock()
    watchdog = Watchdog(3, clock)
    watchdog.owe(1)
    assert look(watchdog, clock, 5) == [0, 5, 0]
    watchdog.owe(1)  # once more: it owes since the first time
    watchdog.owe(2)
    assert look(watchdog, clock, 2) == [0, 7, 2]
    watchdog.heard(1)
    watchdog.heard(2, still_owes=True)
    assert look(watchdog, clock, 1) == [0, 0, 1]
    assert [watchdog.owes(rank) for rank in range(3)] == [False, False, True]


def test_time_in_which_nobody_looked_is_not_held_against_ranks() -> None:
    clock = Clock()
    watchdog = Watchdog(1, clock)
    watchdog.owe(0)
    clock.now_s += 3600  # the driver was stopped, or had other things to do
    assert watchdog.look() == [MOST_PER_LOOK_S]
    clock.now_s -= 10
    assert watchdog.look() == [MOST_PER_LOOK_S]


class FakeRanks:
    """Answers what `replies` says, by rank; each wait takes as long as it may."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.replies: list[Any] = []
        self.closed = ""

    def set_up(self, rank: int, setup: Any, files: Any) -> None: ...

    def send_encoded(self, ranks: Any, data: bytes) -> None: ...

    def receive(self, timeout_s: float) -> Any:
        self.clock.now_s += timeout_s
        return self.replies.pop(0) if self.replies else None

    def last_words(self, rank: int) -> str:
        return "said something"

    def first_killed(self, within_s: float) -> None: ...

    def close(self, *, kill: bool = False) -> None:
        self.closed = "killed" if kill else "ended"


@dataclasses.dataclass
class FakeSetup:
    num_ranks: int


def test_ranks_that_answer_but_finish_nothing_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEESAW_STEP_TIMEOUT", "20")
    clock = Clock()
    ranks = FakeRanks(clock)
    executor = RankExecutor(ranks, [FakeSetup(2)] * 2, [[], []], clock=clock)  # type: ignore
    ranks.replies = [Ready(1), Ready(0)]
    executor.wait_ready()
    executor.submit(SchedulerOutput(7, "decode"))
    executor.submit(SchedulerOutput(8, "decode"))
    ranks.replies = [StepReport(rank=0, step_id=7), None, StepReport(rank=0, step_id=8)]
    with pytest.raises(EngineDeadError, match=r"rank 1 answers but has finished nothing for 20 s"
                       r".*said something.*it was in decode step 7"):  # fmt: skip
        executor.collect()
    assert ranks.closed == "killed"
    assert clock.now_s - 1000 < 30.0
    assert "rank 1: in decode step 7, 2 steps" in executor.describe()[1]
    with pytest.raises(EngineDeadError, match="rank 1"):
        executor.collect()


def test_ranks_that_have_nothing_to_do_may_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEESAW_STEP_TIMEOUT", "20")
    clock = Clock()
    ranks = FakeRanks(clock)
    executor = RankExecutor(ranks, [FakeSetup(1)], [[]], clock=clock)  # type: ignore
    ranks.replies = [None] * 100 + [Ready(0)]  # loading takes as long as it takes
    executor.wait_ready()
    for step_id in range(3):
        executor.submit(SchedulerOutput(step_id, "decode"))
        ranks.replies = [None] * 30 + [StepReport(rank=0, step_id=step_id)]  # 15 s
        executor.collect()
        clock.now_s += 1000


def test_memory_that_ran_out_is_told_in_bytes() -> None:
    def of(error: BaseException) -> str:
        try:
            try:
                raise error
            except BaseException as cause:
                raise EngineDeadError("store 3 of KV failed") from cause
        except EngineDeadError as failed:
            return describe(failed)

    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."),
    ):
        for said in (describe(error), of(error)):
            assert said.startswith("out of memory. "), said
            assert "iB of RAM" in said, said
            assert "Lower device_memory" in said, said
    assert "99 bytes" in describe(error)
    # Others, and those that say themselves what to do.
    assert describe(ValueError("x")) == "ValueError: x"
    assert describe(HostMemoryError("lower this")) == "HostMemoryError: lower this"
    assert of(HostMemoryError("lower this")) == "EngineDeadError: store 3 of KV failed"


def test_a_dump_that_cannot_tell_all_says_so_and_harms_nobody() -> None:
    """A signal may come in the midst of an update."""

    def tell() -> Iterator[str]:
        yield "rank 0: in decode step 7"
        raise KeyError("a request that is being moved")

    path = dump.write("rank 1 was killed", tell)
    assert path is not None
    text = Path(path).read_text()
    assert "rank 1 was killed" in text
    assert "cannot be told" in text
    assert "a request that is being moved" in text
    os.remove(path)
