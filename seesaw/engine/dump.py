"""The text that says what an engine was doing: written when it fails, and when somebody asks.

Owns the file, not what is in it. Short and of bounded size, since it may be written often.
"""

from __future__ import annotations

import os
import tempfile
import traceback
import weakref
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Protocol

from seesaw import __version__, envs
from seesaw.log import get_logger

logger = get_logger(__name__)

MOST_BYTES = 64 << 10


class Dumps(Protocol):
    def dump(self) -> str | None: ...


_alive: weakref.WeakSet[Dumps] = weakref.WeakSet()


def register(engine: Dumps) -> None:
    """Have `dump_all` reach it as long as it lives, or until `forget`."""
    _alive.add(engine)


def forget(engine: Dumps) -> None:
    _alive.discard(engine)


def dump_all() -> None:
    """For a signal: every engine of this process says where it stands, the log where that is."""
    engines = list(_alive)
    for engine in engines:
        if (path := engine.dump()) is not None:
            logger.info("what the engine is doing is in %s", path)
    if not engines:
        logger.info("no engine runs in this process yet")


def write(
    why: str, describe: Callable[[], Iterable[str]], cause: BaseException | None = None
) -> str | None:
    """The path of a new file with `why`, what `describe` says and the traceback of `cause`, which
    a command does not print; None, and a warning, where none can be written. If `describe` fails,
    as it may where a signal or another thread comes in between or the engine is broken, the file
    says how: neither a running engine nor the first error is lost by it."""
    try:
        lines = list(describe())
    except Exception:
        lines = ["the rest cannot be told:", traceback.format_exc()]
    head = f"seesaw {__version__}, process {os.getpid()}, {datetime.now().isoformat()}"
    data = _bounded("\n".join((head, why, "", *lines, "")))
    if cause is not None:
        data += b"\n" + _bounded("".join(traceback.format_exception(cause)))
    try:
        fd, path = tempfile.mkstemp(".txt", "seesaw-dump-", envs.dump_folder())
        with open(fd, "wb") as file:
            file.write(data)
    except OSError as error:
        logger.warning("what the engine was doing could not be written (%s):\n%s", error, why)
        return None
    return path


def _bounded(text: str) -> bytes:
    data = text.encode(errors="backslashreplace")
    return data if len(data) <= MOST_BYTES else data[:MOST_BYTES] + b"\n(cut off here)\n"
