"""The figures of docs/resharding.md are those that the code beside them prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "resharding.md"


def test_the_worked_example_prints_what_the_page_shows() -> None:
    text = PAGE.read_text(encoding="utf-8")
    ((code, shown),) = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```\n", text, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PAGE.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == shown
