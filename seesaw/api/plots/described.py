"""Draws plots that experiments and benches describe as plain data."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seesaw.api.plots.charts import bars, lines

KINDS: Mapping[str, Callable[..., None]] = {"lines": lines, "bars": bars}


def draw(plot: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """`plot["kind"]` is `lines` or `bars`, the rest are their arguments; they raise ConfigError."""
    settings = dict(plot)
    KINDS[settings.pop("kind")](path=path, **settings)


def draw_all(plots: Sequence[Mapping[str, Any]], file: Path) -> list[Path]:
    """Each to a file of its own: `file`, or FILE-1, FILE-2 .. where there are several."""
    files = [file]
    if len(plots) > 1:
        files = [file.with_stem(f"{file.stem}-{at}") for at in range(1, len(plots) + 1)]
    for plot, one in zip(plots, files, strict=True):
        draw(plot, one)
    return files
