"""Runs that were made already, in a file, so that a search that was cut off goes on where it was.

One JSON object a line: first what the runs are of, then each run. A line cut off in writing is as
if it had never been.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seesaw.api.report import check_writable
from seesaw.errors import ConfigError

FLAG = "--journal"


class Journal:
    """`about` is all that a run depends on but its policy and rate. Without a file nothing is
    kept."""

    def __init__(self, path: Path | None, about: Mapping[str, Any]) -> None:
        """Raises ConfigError where the file is of other runs, or cannot be written."""
        self._path = path
        self._runs: dict[tuple[str, float], dict[str, Any]] = {}
        if path is None:
            return
        check_writable(path, FLAG)
        about = json.loads(json.dumps(about))
        lines = _complete_lines(path, json.dumps(about))
        if not lines:
            path.write_text(json.dumps(about) + "\n", encoding="utf-8")
            return
        if (differ := _difference(lines[0], about)) is not None:
            raise ConfigError(
                f"{FLAG} {path}: has runs of another bench: {differ}. Name another file, or ask "
                "for the same."
            )
        # Without the line that was cut off.
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        for line in lines[1:]:
            self._runs[line["policy"], line["rate_per_s"]] = line

    def get(self, policy: str, rate_per_s: float) -> dict[str, Any] | None:
        """The figures of that run, if it was made."""
        return self._runs.get((policy, rate_per_s))

    def add(self, figures: dict[str, Any]) -> None:
        """Of a run, with its "policy" and "rate_per_s"."""
        self._runs[figures["policy"], figures["rate_per_s"]] = figures
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(figures) + "\n")


def _complete_lines(path: Path, first: str) -> list[dict[str, Any]]:
    """Raises ConfigError where the file is no journal, so that no other one is written over;
    `first` is what its first line would be if that was cut off."""
    if not path.exists():
        return []
    try:
        *lines, last = path.read_text(encoding="utf-8").split("\n")
        found = [json.loads(line) for line in lines]
    except OSError as error:
        raise ConfigError(f"{FLAG} {path}: {error.strerror}. Name another one.") from error
    except ValueError:  # not JSON, or not text
        found, last = [None], ""
    if not all(isinstance(line, dict) for line in found) or not (found or first.startswith(last)):
        raise ConfigError(f"{FLAG} {path}: is no file of such runs. Name another one.")
    return found


def _difference(kept: Mapping[str, Any], asked: Mapping[str, Any]) -> str | None:
    for name in dict.fromkeys((*kept, *asked)):
        if kept.get(name) != asked.get(name):
            return f"{name} was {kept.get(name)!r}, now it is {asked.get(name)!r}"
    return None
