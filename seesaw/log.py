"""One logger for the package; messages go to standard error, never to standard output."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

from seesaw import envs


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the time, so that a progress bar can take it over."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def get_logger(name: str) -> logging.Logger:
    """A child of the `seesaw` logger, which is set up at first use and leaves the root logger
    alone.
    """
    root = logging.getLogger("seesaw")
    if not root.handlers:
        handler = _StandardError()
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        root.addHandler(handler)
        root.setLevel(envs.logging_level())
        root.propagate = False
    return logging.getLogger(name)
