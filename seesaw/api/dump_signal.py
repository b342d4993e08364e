"""SIGUSR1 to a command that runs an engine: it writes what the engine is doing to a file, and goes
on. Loads no engine itself.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def dump_on_signal() -> Iterator[None]:
    """While this is open. Elsewhere than in the main thread, where Python takes no handlers, the
    signal is left alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGUSR1, _dump)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def _dump(number: int, frame: FrameType | None) -> None:
    dump = sys.modules.get("seesaw.engine.dump")
    if dump is not None:  # else there is no engine yet
        dump.dump_all()
