"""Kernels of csrc/cuda as C++ on the CPU, under sanitizers: what they copy and sum, and that ranks
of an all-reduce never read what another one writes.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.csrc.sanitizers import SANITIZERS, compile_and_run

SOURCES = [Path(__file__).parent / "cuda_test.cpp"]


@pytest.mark.parametrize("sanitizers", SANITIZERS)
def test_cuda_kernels_under(sanitizers: str, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    flags = ["-Wno-unknown-pragmas"]  # of nvcc
    done = compile_and_run(SOURCES, sanitizers, tmp_path, str(seed), flags=flags)
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}\n{done.stderr}"
    assert done.stderr == "", f"seed {seed}"
    assert len(done.stdout.splitlines()) == 4
