"""What docs/simulation.md shows works when it is pasted, one block after another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.readme_blocks import code_blocks

ROOT = Path(__file__).parent.parent
MOST_SVG_BYTES = 300_000


def test_the_page_s_blocks_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    seesaw = tmp_path / "seesaw"
    seesaw.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m seesaw "$@"\n')
    seesaw.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    interpreter = {"bash": ["bash", "-euo", "pipefail"], "python": [sys.executable]}
    blocks = code_blocks((ROOT / "docs" / "simulation.md").read_text(encoding="utf-8"))
    assert {block.language for block in blocks} == {"bash", "python"}
    said = {}
    for block in blocks:
        done = subprocess.run(
            [*interpreter[block.language], "-c", block.code],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"line {block.line}: {done.stderr}"
        said[block.line] = done.stdout
    (picture,) = (block.line for block in blocks if "--plot timeline.svg" in block.code)
    assert "in dp1-tp1-pp4 -> dp1-tp4-pp1, policy seesaw: 96 requests" in said[picture]
    transitions = next(line for line in said[picture].splitlines() if "transitions" in line)
    assert int(transitions.split()[0]) > 1, "the page says that the layout changes often"
    for made in (tmp_path / "timeline.svg", ROOT / "docs" / "plots" / "timeline.svg"):
        assert 10_000 < made.stat().st_size < MOST_SVG_BYTES
