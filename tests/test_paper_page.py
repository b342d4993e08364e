"""Tables of docs/paper.md and docs/schedulers.md are those of bench/paper/, and their pictures are
there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from seesaw.simulate.experiments import EXPERIMENTS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "docs" / name for name in ("paper.md", "schedulers.md")]


def test_the_page_has_the_figures_that_are_kept() -> None:
    done = subprocess.run(
        [sys.executable, "bench/paper.py", "--page", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr or "run `python bench/paper.py --page`"


def test_every_experiment_is_shown_once_and_those_that_ran_are_kept() -> None:
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    kept = {path.stem for path in (ROOT / "bench" / "paper").glob("*.json")}
    shown = re.findall(r"<!-- table ([\w-]+) -->\n(Not run)?", "".join(texts))
    # A second table of an experiment's figures.
    of = {"nexus-rates": "nexus"}
    assert sorted(name for name, _ in shown if name not in of) == sorted(EXPERIMENTS)
    assert kept == {of.get(name, name) for name, not_run in shown if not not_run}
    for page, text in zip(PAGES, texts, strict=True):
        pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
        assert all((page.parent / picture).is_file() for picture in pictures)


def test_the_published_figures_are_met_where_the_page_says_so() -> None:
    def kept(name: str) -> dict[str, float]:
        path = ROOT / "bench" / "paper" / f"{name}.json"
        found: dict[str, float] = json.loads(path.read_text())
        return found

    for device in ("a10", "l4"):
        found = kept(f"throughput-{device}")
        assert abs(found["gain_over_published_layout"] / found["published_gain"] - 1) < 0.1
    assert abs(kept("throughput-l4")["gain"] / 1.29 - 1) < 0.1
