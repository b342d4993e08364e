"""What docs/serving-bench.md shows works when it is pasted, one block after another."""

from __future__ import annotations

import json
from pathlib import Path

from tests.readme_blocks import ROOT, code_blocks, reader_environment, run_block


def test_the_page_s_blocks_run(tmp_path: Path) -> None:
    environment = reader_environment(tmp_path)
    blocks = code_blocks((ROOT / "docs" / "serving-bench.md").read_text(encoding="utf-8"))
    assert [block.language for block in blocks] == ["bash", "bash", "python"]
    said = [run_block(block, tmp_path, environment) for block in blocks]
    runs = json.loads((tmp_path / "figures.json").read_text())["runs"]
    assert len(runs) == 4
    # What the page compares is worth comparing.
    assert [one["counts"]["num_stalls"] > 0 for one in runs] == [True, True, False, False]
    assert "capacity of auto:" in said[1]
