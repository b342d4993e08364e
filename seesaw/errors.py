"""Errors that reach people. Each says what was got, what is expected and what to do.

Every error a user can cause derives from `SeesawError`; anything else that escapes is a bug in
seesaw.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SeesawError(Exception):
    """Base of all errors that seesaw raises on purpose."""


class ConfigError(SeesawError, ValueError):
    """A setting, model directory or environment that cannot work. Raised before work is spent."""


class RequestError(SeesawError, ValueError):
    """One request that cannot be served; other requests are not affected.

    `param` names the offending field and `code` the kind of mistake, in the words of OpenAI's error
    body.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_value"):
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class DoesNotFit(ConfigError):
    """Memory that is asked for and is not there: `missing_bytes` more would do, of the device or of
    the host that the message names."""

    def __init__(self, message: str, *, missing_bytes: int):
        super().__init__(message)
        self.missing_bytes = missing_bytes


class ModelError(ConfigError):
    """A checkpoint that cannot be loaded: unknown architecture, missing tensor, wrong shape,
    quantised.
    """


class UnsupportedError(SeesawError, ValueError):
    """An op was given what its kernels cannot compute: dtype, size, layout or GPU. Raised before
    anything is launched; names the op, what was got and what is supported."""


class HostMemoryError(SeesawError, MemoryError):
    """The system refused memory of the host, or to page-lock it."""


class EngineDeadError(SeesawError, RuntimeError):
    """The engine failed in a step and cannot go on; unfinished requests must be run again
    elsewhere.
    """


class JobError(SeesawError, RuntimeError):
    """A batch job that cannot go on (journal locked, disk full, too many restarts). The same job
    can be resumed.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint ` Did you mean 'x'?` for a misspelt `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
