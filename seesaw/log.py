"""One logger for the package; messages go to standard error, never to standard output."""

from __future__ import annotations

import logging
import sys

from seesaw import envs


def get_logger(name: str) -> logging.Logger:
    """A child of the `seesaw` logger, which is set up at first use and leaves the root logger
    alone.
    """
    root = logging.getLogger("seesaw")
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        root.addHandler(handler)
        root.setLevel(envs.logging_level())
        root.propagate = False
    return logging.getLogger(name)
