"""Machine-readable output of commands: `--output-json FILE`, or `-` for standard output.

With `-` nothing else may reach standard output, so it is set aside while the command works.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from seesaw.api.flags import Flag
from seesaw.errors import ConfigError

STDOUT = "-"


def output_json_flag(what: str) -> click.Option:
    return Flag(
        ["output_json", "--output-json"],
        metavar="FILE",
        help=f"write {what} as JSON to FILE; - = standard output, with nothing else on it",
    )


def trace_flag() -> click.Option:
    return Flag(
        ["--trace"],
        metavar="FILE",
        help="write what every device and the driver do when to FILE.json, for ui.perfetto.dev and "
        "`seesaw report`",
    )


def check_trace(path: str | None) -> None:
    """Raises ConfigError where `--trace` names what cannot be written."""
    if path is not None:
        if Path(path).suffix != ".json":
            raise ConfigError(f"--trace {path}: expected a name that ends in .json.")
        check_writable(Path(path), "--trace")


@contextlib.contextmanager
def machine_output(target: str | None) -> Iterator[Callable[[Any], None]]:
    """Yields `write(value)`, which puts `value` as JSON where `target` says, or nowhere if None.

    A target that cannot be written raises ConfigError here, before work is spent. A file appears
    whole or not at all.
    """
    if target is None:
        yield lambda value: None
    elif target == STDOUT:
        stdout = sys.stdout
        with contextlib.redirect_stdout(sys.stderr):
            yield lambda value: print(_dump(value, stdout.encoding), file=stdout, flush=True)
    else:
        path = Path(target)
        check_writable(path, "--output-json")
        yield lambda value: _write(path, _dump(value, "utf-8"))


def _dump(value: Any, encoding: str) -> str:
    """JSON that `encoding` can write: a file name that is no Unicode, say, is escaped."""
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False)
        text.encode(encoding)
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2)
    return text


def check_writable(path: Path, flag: str) -> None:
    """Raises ConfigError, naming the flag, where a file cannot be written there."""
    if path.is_dir():
        raise ConfigError(f"{flag} {path}: is a folder, expected a file name.")
    if not path.parent.is_dir():
        raise ConfigError(f"{flag} {path}: the folder {path.parent} does not exist.")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{flag} {path}: no permission to write in {path.parent}.")


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    draft.write_text(text + "\n", encoding="utf-8")
    draft.replace(path)
