"""Ranks over shared memory and over sockets under AddressSanitizer, UndefinedBehaviorSanitizer and
ThreadSanitizer, with threads as ranks: over one mapping, so that races between ranks are seen."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.csrc.sanitizers import ROOT, SANITIZERS, compile_and_run

SOURCES = [
    *(ROOT / "csrc/cpu" / f"{name}.cpp" for name in ("shm_comm", "tcp_comm", "tcp_links", "isa")),
    Path(__file__).parent / "comm_test.cpp",
]


def kernel_sources(folder: Path) -> list[Path]:
    """One for each table that a build has, all in plain C++: what is tested is who adds when."""
    found = []
    for isa in ("generic", "avx2", "avx512", "avx512bf16"):
        found.append(folder / f"sum_{isa}.cpp")
        kernel = ROOT / "csrc/cpu/kernels/sum.cpp"
        found[-1].write_text(f'#define SEESAW_ISA {isa}\n#include "{kernel}"\n')
    return found


@pytest.mark.parametrize("sanitizers", SANITIZERS)
def test_ranks_under(sanitizers: str, tmp_path: Path) -> None:
    seed = random.randrange(2**31)
    done = compile_and_run(SOURCES + kernel_sources(tmp_path), sanitizers, tmp_path, str(seed))
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}\n{done.stderr}"
    assert done.stderr == "", f"seed {seed}"
    assert done.stdout.splitlines() == ["shm", "tcp", "slow reader", "silence"]
