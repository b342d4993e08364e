"""SIGINT and SIGTERM: the first one asks the job to stop, the second one ends the process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """Raised by the first signal inside `Interrupts.immediate()`."""


class Interrupts:
    """`stop` turns true at the first signal, `signal_number` says which. A context manager.

    Python runs handlers only between its own instructions, and a step may spend long in C. The
    second signal is therefore seen by a thread, through the descriptor that the C-level handler
    writes to. Outside the main thread, where Python takes no handlers, signals are left alone.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self._active = threading.current_thread() is threading.main_thread()
        self._raise = False
        self._old: dict[int, Any] = {}

    @property
    def stop(self) -> bool:
        return self.signal_number != 0

    def __enter__(self) -> Self:
        if self._active:
            self._reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            self._old_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            for number in _SIGNALS:
                self._old[number] = signal.signal(number, self._handle)
            self._thread = threading.Thread(target=self._watch, name="seesaw-signals", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._active:
            for number, handler in self._old.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._old_fd)
            self._writer.close()
            self._thread.join()
            self._reader.close()

    @contextlib.contextmanager
    def immediate(self) -> Iterator[None]:
        """For work that loses nothing when cut off (loading a model): a signal raises Interrupted
        within it.
        """
        if self.stop:
            raise Interrupted
        self._raise = True
        try:
            yield
        finally:
            self._raise = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = self.signal_number or number
        if self._raise:
            self._raise = False
            raise Interrupted

    def _watch(self) -> None:
        num_seen = 0
        while data := self._reader.recv(64):
            for number in filter(_SIGNALS.__contains__, data):
                num_seen += 1
                if num_seen > 1:
                    os._exit(128 + number)
                self.signal_number = number
