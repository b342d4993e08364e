"""What a real engine takes of the machine: within its budget, and flat over a long stream."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MIB = 2**20


def measure(*arguments: object) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.measure_rss", *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.model
def test_the_budget_is_never_exceeded(smollm2_gguf):
    """Load and largest steps of a real model; 64 MiB are for what is no tensor (threads, code)."""
    found = measure("budget", smollm2_gguf, "700MiB")
    assert found["tokens"] > 5000
    assert found["growth"] <= found["budget"] + 64 * MIB, found


@pytest.mark.model
def test_memory_is_flat_over_a_stream(smollm2_gguf):
    found = measure("stream", smollm2_gguf, 500)
    assert found["rows"] == 500
    assert found["end"] <= 1.05 * found["warm"], found
