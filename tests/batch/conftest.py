"""Fixtures of the batch tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.batch.fake_engine import FakeEngine
from tests.batch.helpers import Jobs


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    FakeEngine.generation = 0
    return Jobs(tmp_path)
