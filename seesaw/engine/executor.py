"""Where steps run. The engine hands steps over and collects what they drew; it never waits to hand
over.

One device runs in this process, on a thread of its own: torch releases the interpreter lock while
it computes, so the next step is planned, and finished text is decoded, meanwhile.
"""

from __future__ import annotations

import atexit
import queue
import threading
import traceback
from typing import Protocol

from seesaw.engine.worker import Worker
from seesaw.errors import EngineDeadError
from seesaw.scheduler.output import ModelOutput, SchedulerOutput


class Executor(Protocol):
    def submit(self, step: SchedulerOutput) -> None:
        """Hand over the next step; returns at once. Steps run in the order they are submitted."""
        ...

    def collect(self) -> ModelOutput:
        """Wait for any submitted step that has not been collected. Raises EngineDeadError."""
        ...

    def shutdown(self) -> None:
        """Stop and free; safe to call twice and after a failure."""
        ...


class InProcessExecutor:
    """Runs a worker on one thread of this process."""

    def __init__(self, worker: Worker) -> None:
        self._stopping = False
        self._steps: queue.SimpleQueue[SchedulerOutput | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[ModelOutput | BaseException] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._run, args=(worker,), name="seesaw-worker", daemon=True
        )
        self._thread.start()
        # Python ends daemon threads where they stand, and one inside torch takes the process down.
        atexit.register(self.shutdown)

    def submit(self, step: SchedulerOutput) -> None:
        self._steps.put(step)

    def collect(self) -> ModelOutput:
        result = self._done.get()
        if isinstance(result, BaseException):
            # Every later call fails the same way instead of waiting for a thread that has ended.
            self._done.put(result)
            raise EngineDeadError(f"a step failed: {type(result).__name__}: {result}") from result
        return result

    def shutdown(self) -> None:
        """The step that runs is waited for; those behind it are not begun."""
        self._stopping = True
        self._steps.put(None)
        self._thread.join()
        atexit.unregister(self.shutdown)

    def _run(self, worker: Worker) -> None:
        while (step := self._steps.get()) is not None and not self._stopping:
            try:
                self._done.put(worker.execute(step))
            except BaseException as error:
                # The traceback is kept, and with it all that its frames hold: weights and KV.
                traceback.clear_frames(error.__traceback__)
                del worker
                self._done.put(error)
                return
