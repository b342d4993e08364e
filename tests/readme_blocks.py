"""Code blocks of a Markdown page, and how tests run what a reader would paste.

A block fenced with bash or python is code to run. `<!-- test: skip (reason) -->` on the line before
it, with a reason, leaves it out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
LIMIT_S = 300
LANGUAGES = ("bash", "python")
_SKIP = re.compile(r"<!--\s*test:\s*skip\b\s*(?:\((?P<reason>.*)\))?\s*-->")


class Block(NamedTuple):
    """`line` is that of the opening fence, from 1; `skip` the reason not to run it, or None."""

    language: str
    line: int
    code: str
    skip: str | None


def code_blocks(text: str) -> list[Block]:
    """Blocks to run, in order. Raises ValueError for a fence left open or a skip that says no
    reason, or that stands before no code.
    """
    blocks: list[Block] = []
    fence: str | None = None
    skip: str | None = None
    opened, language, code = 0, "", []
    for number, line in enumerate(text.splitlines(), 1):
        if fence is not None:
            if line.strip() == fence:
                if language in LANGUAGES:
                    blocks.append(Block(language, opened, "\n".join(code) + "\n", skip))
                elif skip is not None:
                    raise ValueError(f"line {opened}: the skip above this block skips nothing")
                fence = skip = None
            else:
                code.append(line)
        elif match := re.match(r"(`{3,}|~{3,})\s*(\w*)", line):
            fence, language, opened, code = match[1], match[2], number, []
        elif match := _SKIP.match(line.strip()):
            if not match["reason"]:
                raise ValueError(f"line {number}: a skip needs a reason in brackets")
            skip = match["reason"]
        elif skip is not None:
            raise ValueError(f"line {number}: a skip must stand right before its block")
    if fence is not None:
        raise ValueError(f"line {opened}: this block is never closed")
    return blocks


def reader_environment(binaries: Path) -> dict[str, str]:
    """The reader's: `seesaw` and `python`, made in that folder, are those of this environment."""
    seesaw = binaries / "seesaw"
    seesaw.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m seesaw "$@"\n')
    seesaw.chmod(0o755)
    (binaries / "python").symlink_to(sys.executable)
    path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}


def run(command: Sequence[str], cwd: Path, environment: dict[str, str], what: str = "") -> str:
    """What it prints; it must end well, or `what` is named."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, f"{what} exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_block(block: Block, cwd: Path, environment: dict[str, str]) -> str:
    """What the code prints; it must end well."""
    interpreter = {"bash": ["bash", "-euo", "pipefail"], "python": [sys.executable]}
    command = [*interpreter[block.language], "-c", block.code]
    return run(command, cwd, environment, f"line {block.line}:")
