"""Where steps run. The engine hands steps over and collects what became of them; it never waits to
hand over.

One device runs in this process, on a thread of its own: torch releases the interpreter lock while
it computes or waits, so the next step is planned, and finished text is decoded, meanwhile. Several
devices: `rank_executor.py`.
"""

from __future__ import annotations

import atexit
import queue
import threading
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from seesaw.engine.host import return_free_memory
from seesaw.engine.merger import Merger
from seesaw.engine.messages import StepReport, TransferReport
from seesaw.engine.model_runner import ModelRunner
from seesaw.engine.steps_ahead import StepsAhead
from seesaw.errors import EngineDeadError
from seesaw.scheduler.output import ModelOutput, SchedulerOutput, TransferDone

Hear = Callable[[StepReport | TransferReport], None]


class Executor(Protocol):
    """Replicas have a stream of steps each, which know nothing of one another. `hear`, where there
    is one, is called in `collect` with what each rank reports."""

    hear: Hear | None

    def submit(self, step: SchedulerOutput, replica: int = 0) -> None:
        """Hand over the replica's next step; returns at once. Its steps run in the order in which
        they are submitted."""
        ...

    def collect(self) -> tuple[int, ModelOutput | TransferDone]:
        """Wait for anything that has not been collected: (replica, a finished step or a finished
        store or load). Raises EngineDeadError."""
        ...

    @property
    def weight_bytes(self) -> Mapping[str, int]:
        """What changes of layout have moved so far over all ranks, in bytes by source."""
        ...

    def describe(self) -> list[str]:
        """What each rank is at, in lines for people; also after a failure."""
        ...

    def shutdown(self) -> None:
        """Stop and free; safe to call twice and after a failure."""
        ...


MakeRunner = Callable[
    [Callable[[TransferReport | BaseException], None], Callable[[], None]], ModelRunner
]
"""Makes the runner (report, go_on): `report` takes finished stores and loads, and failed ones, from
any thread; `go_on` raises where loading is not wanted any more."""


class _Stopped(Exception):
    """Shut down before the runner was made."""


MakeBeside = Callable[[ModelRunner, Callable[[TransferReport | BaseException], None]], ModelRunner]
"""Makes the runner of a second lane (that of the first one, report)."""


class InProcessExecutor:
    """Makes and runs one rank on one thread of this process; with `make_beside` on two, one for
    each lane of its steps.

    It is made there too: OpenMP keeps threads for each thread that has ever computed, and once
    these are more than cores all of them sleep between operations instead of spinning. Loading on
    another thread made decode steps a third slower.
    """

    def __init__(self, make_runner: MakeRunner, make_beside: MakeBeside | None = None) -> None:
        """Returns when runners are made; raises what making them raised."""
        self.hear: Hear | None = None
        self._stopping = False
        self._merger = Merger(1)
        self._steps: list[queue.SimpleQueue[SchedulerOutput | None]] = []  # by lane
        self._threads: list[threading.Thread] = []
        self._first: ModelRunner | None = None  # of two lanes; it takes in the steps of both
        self._done: queue.SimpleQueue[StepReport | TransferReport | BaseException] = (
            queue.SimpleQueue()
        )
        self._made: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        # Python ends daemon threads where they stand, and one inside torch takes the process down.
        atexit.register(self.shutdown)
        self._start(make_runner, "seesaw-worker", keep=make_beside is not None)
        if make_beside is not None:
            self._start(partial(self._make_second, make_beside), "seesaw-worker-2")

    def _make_second(
        self, make_beside: MakeBeside, report: Callable[[TransferReport | BaseException], None],
        go_on: Callable[[], None],
    ) -> ModelRunner:  # fmt: skip
        assert self._first is not None, "a lane beside none"
        return make_beside(self._first, report)

    def _start(self, make_runner: MakeRunner, name: str, *, keep: bool = False) -> None:
        """Another lane, on a thread of its own, which makes its runner. `keep`: steps of all lanes
        are to be taken in by this one."""
        steps: queue.SimpleQueue[SchedulerOutput | None] = queue.SimpleQueue()
        self._steps.append(steps)
        thread = threading.Thread(
            target=self._run, args=(make_runner, steps, keep), name=name, daemon=True
        )
        self._threads.append(thread)
        thread.start()
        try:
            failed = self._made.get()
        except BaseException:
            self._stopping = True  # Ctrl-C while weights are read
            raise
        if failed is not None:
            self.shutdown()
            raise failed

    def submit(self, step: SchedulerOutput, replica: int = 0) -> None:
        assert replica == 0, "one device is one replica"
        if (first := self._first) is not None:
            first.take_in(step)
        self._steps[step.lane].put(step)

    def collect(self) -> tuple[int, ModelOutput | TransferDone]:
        report = self._done.get()
        if isinstance(report, BaseException):
            # Every later call fails the same way instead of waiting for a thread that has ended.
            self._done.put(report)
            raise EngineDeadError(f"a step failed: {type(report).__name__}: {report}") from report
        if self.hear is not None:
            self.hear(report)
        done: ModelOutput | TransferDone | None
        if isinstance(report, StepReport):
            done = self._merger.add_step(report)
        else:
            done = self._merger.add_transfer(report)
        assert done is not None, "there is one rank"
        return 0, done

    @property
    def weight_bytes(self) -> Mapping[str, int]:
        return self._merger.weight_bytes

    def describe(self) -> list[str]:
        waiting = " and ".join(str(steps.qsize()) for steps in self._steps)
        threads = "a thread" if len(self._steps) == 1 else "a thread for each lane"
        return [f"rank 0, {threads} of this process: {waiting} steps wait for it"]

    def shutdown(self) -> None:
        """Steps that were begun are waited for; those behind them are not begun."""
        self._stopping = True
        for steps in self._steps:
            steps.put(None)
        for thread in self._threads:
            thread.join()
        self._first = None
        atexit.unregister(self.shutdown)

    def _go_on(self) -> None:
        if self._stopping:
            raise _Stopped

    def _run(
        self, make_runner: MakeRunner, steps: queue.SimpleQueue[SchedulerOutput | None], keep: bool
    ) -> None:
        try:
            runner = make_runner(self._done.put, self._go_on)
        except BaseException as error:
            self._made.put(error)
            return
        del make_runner
        if keep:
            self._first = runner
        self._made.put(None)
        ahead = StepsAhead(runner, self._done.put)
        try:
            while True:
                ahead.work_until(lambda: not steps.empty())
                step = steps.get()
                if step is None or self._stopping:
                    break
                ahead.begin(step)
            ahead.settle()
        except BaseException as error:
            # The traceback is kept, and with it all that its frames hold: weights and KV.
            traceback.clear_frames(error.__traceback__)
            self._first = None
            runner.close()
            del runner, ahead
            self._done.put(error)
            return
        runner.close()
        del runner, ahead
        return_free_memory()
