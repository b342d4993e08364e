"""What docs/serving-bench.md shows works when it is pasted, one block after another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.readme_blocks import code_blocks

ROOT = Path(__file__).parent.parent


def test_the_page_s_blocks_run(tmp_path: Path) -> None:
    seesaw = tmp_path / "seesaw"
    seesaw.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m seesaw "$@"\n')
    seesaw.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    interpreter = {"bash": ["bash", "-euo", "pipefail"], "python": [sys.executable]}
    blocks = code_blocks((ROOT / "docs" / "serving-bench.md").read_text(encoding="utf-8"))
    assert [block.language for block in blocks] == ["bash", "bash", "python"]
    said = []
    for block in blocks:
        done = subprocess.run(
            [*interpreter[block.language], "-c", block.code],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"line {block.line}: {done.stderr}"
        said.append(done.stdout)
    runs = json.loads((tmp_path / "figures.json").read_text())["runs"]
    assert len(runs) == 4
    # What the page compares is worth comparing.
    assert [one["counts"]["num_stalls"] > 0 for one in runs] == [True, True, False, False]
    assert "capacity of auto:" in said[1]
