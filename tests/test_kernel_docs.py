"""docs/kernels.md: its examples run as they stand, and no op is missing."""

from __future__ import annotations

import re
from pathlib import Path

from seesaw.ops import OPS
from tests.readme_blocks import code_blocks

TEXT = (Path(__file__).parents[1] / "docs" / "kernels.md").read_text(encoding="utf-8")


def test_examples_run() -> None:
    names: dict[str, object] = {}
    blocks = [block for block in code_blocks(TEXT) if block.language == "python"]
    assert len(blocks) > 5
    for block in blocks:
        exec(compile(block.code, f"docs/kernels.md, line {block.line}", "exec"), names)


def test_every_op_has_an_example_and_a_row() -> None:
    called = set(re.findall(r"ops\.([a-z_]+)\(", TEXT))
    rows = "\n".join(line.split("|")[1] for line in TEXT.splitlines() if line.startswith("| `"))
    assert called >= set(OPS), set(OPS) - called
    assert set(re.findall(r"`(\w+)`", rows)) == set(OPS)
