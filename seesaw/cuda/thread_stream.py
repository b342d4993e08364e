"""A stream of the CPU: a thread that does what it is given in order, so that code written for
streams of a GPU runs beside what a CPU computes too.

Its work is done where its events are over, not begun as on a GPU. What fails is raised by every
event recorded later; nothing is done after it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import torch

from seesaw.cuda.streams import Event


class ThreadEvent:
    def __init__(self) -> None:
        self._over = threading.Event()
        self._error: BaseException | None = None

    @classmethod
    def over(cls) -> ThreadEvent:
        """One that is over already."""
        event = cls()
        event.set(None)
        return event

    def set(self, error: BaseException | None) -> None:
        self._error = error
        self._over.set()

    def query(self) -> bool:
        return self._over.is_set()

    def synchronize(self) -> None:
        """Raises what work before it raised."""
        self._over.wait()
        if self._error is not None:
            raise self._error


class ThreadStream:
    """A `Stream`."""

    def __init__(self, name: str) -> None:
        self._given: queue.SimpleQueue[Callable[[], None] | ThreadEvent | None] = (
            queue.SimpleQueue()
        )
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Callable[[], None]) -> None:
        self._given.put(work)

    def record(self) -> ThreadEvent:
        event = ThreadEvent()
        self._given.put(event)
        return event

    def wait(self, event: Event) -> None:
        self.run(event.synchronize)

    def empty(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def close(self) -> None:
        """When all is done that was given."""
        self._given.put(None)
        self._thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        while (given := self._given.get()) is not None:
            if isinstance(given, ThreadEvent):
                given.set(self._error)
            elif self._error is None:
                try:
                    given()
                except BaseException as error:
                    self._error = error
            del given  # and with it the memory that it is about
