"""Draws a plot that an experiment describes as plain data."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from seesaw.api.plots.charts import bars, lines

KINDS: Mapping[str, Callable[..., None]] = {"lines": lines, "bars": bars}


def draw(plot: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """`plot["kind"]` is `lines` or `bars`, the rest are their arguments; they raise ConfigError."""
    settings = dict(plot)
    KINDS[settings.pop("kind")](path=path, **settings)
