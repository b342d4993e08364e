"""A test that takes the GPU from its process fails; those behind it are left out, and say so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import seesaw
from seesaw.measure.lost import is_lost

ROOT = Path(seesaw.__file__).parent.parent
OWN = """
import torch

def test_before():
    assert 1 == 2

def test_out_of_bounds(monkeypatch):
    def fails():
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    torch.cuda.is_initialized = lambda: True
    torch.cuda.synchronize = fails
    fails()

def test_behind():
    pass
"""


def test_no_gpu_is_lost_that_was_not_used() -> None:
    assert not is_lost()


def test_tests_behind_a_lost_gpu_name_who_lost_it(tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text(OWN)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-rs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "2 failed, 1 skipped" in done.stdout
    assert "has failed this process in" in done.stdout
    assert "test_own.py::test_out_of_bounds" in done.stdout.partition("SKIPPED")[2]
