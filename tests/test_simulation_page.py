"""What docs/simulation.md shows works when it is pasted, one block after another."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.readme_blocks import ROOT, code_blocks, reader_environment, run_block

MOST_SVG_BYTES = 300_000


def test_the_page_s_blocks_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    environment = reader_environment(tmp_path)
    blocks = code_blocks((ROOT / "docs" / "simulation.md").read_text(encoding="utf-8"))
    assert {block.language for block in blocks} == {"bash", "python"}
    said = {block.line: run_block(block, tmp_path, environment) for block in blocks}
    (picture,) = (block.line for block in blocks if "--plot timeline.svg" in block.code)
    assert "in dp1-tp1-pp4 -> dp1-tp4-pp1, policy seesaw: 96 requests" in said[picture]
    transitions = next(line for line in said[picture].splitlines() if "transitions" in line)
    assert int(transitions.split()[0]) > 1, "the page says that the layout changes often"
    for made in (tmp_path / "timeline.svg", ROOT / "docs" / "plots" / "timeline.svg"):
        assert 10_000 < made.stat().st_size < MOST_SVG_BYTES
