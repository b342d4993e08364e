"""What the README and `examples/` show works when it is pasted.

Blocks run one after another in one empty folder, with `seesaw` on the path and the small real
model as $MODEL; so a later block may use what an earlier one made.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.readme_blocks import ROOT, Block, code_blocks, reader_environment, run, run_block

BLOCKS = code_blocks((ROOT / "README.md").read_text(encoding="utf-8"))
OF_ITS_OWN = "train_tiny_moe.py"
"""Takes no model; tests/test_train_tiny_moe.py runs it."""
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.name != OF_ITS_OWN)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


@pytest.fixture(scope="module")
def environment(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    binaries = tmp_path_factory.mktemp("bin")
    return {**reader_environment(binaries), "MODEL": str(smollm2_gguf)}


@pytest.mark.model
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"line{block.line}-{block.language}")
def test_readme_block(block: Block, folder: Path, environment: dict[str, str]) -> None:
    if block.skip is not None:
        pytest.skip(block.skip)
    run_block(block, folder, environment)


@pytest.mark.model
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example(path: Path, folder: Path, environment: dict[str, str]) -> None:
    run([sys.executable, str(path), environment["MODEL"]], folder, environment)


def test_the_readme_shows_code_that_runs() -> None:
    assert {block.language for block in BLOCKS if block.skip is None} == {"bash", "python"}


def test_blocks_are_found_with_their_skips() -> None:
    text = "a\n```bash\nls\n```\n```text\nout\n```\n<!-- test: skip (slow) -->\n```python\n1\n```\n"
    assert code_blocks(text) == [
        Block("bash", 2, "ls\n", None),
        Block("python", 9, "1\n", "slow"),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("```bash\nls\n", "never closed"),
        ("<!-- test: skip -->\n```bash\n```\n", "needs a reason"),
        ("<!-- test: skip (x) -->\n\n```bash\n```\n", "right before"),
        ("<!-- test: skip (x) -->\n```text\n```\n", "skips nothing"),
    ],
)
def test_mistakes_in_the_page_are_named(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        code_blocks(text)
