"""The copy pool under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.csrc.sanitizers import ROOT, SANITIZERS, compile_and_run

SOURCES = [ROOT / "csrc/cpu/copy_pool.cpp", Path(__file__).parent / "copy_pool_test.cpp"]


@pytest.mark.parametrize("sanitizers", SANITIZERS)
def test_copy_pool_under(sanitizers: str, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    done = compile_and_run(SOURCES, sanitizers, tmp_path, str(seed))
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}\n{done.stderr}"
    assert done.stderr == "", f"seed {seed}"
    assert len(done.stdout.splitlines()) == 7


@pytest.mark.parametrize(
    ("sanitizers", "fault", "report"),
    [
        ("address,undefined", "int* p = new int[2]; delete[] p; return p[0];", "use-after-free"),
        ("thread", "int x = 0; std::thread t([&] { x = 1; }); x = 2; t.join(); return 0;", "race"),
    ],
)
def test_the_sanitizers_see_faults(
    sanitizers: str, fault: str, report: str, tmp_path: Path
) -> None:
    source = tmp_path / "fault.cpp"
    source.write_text(f"#include <thread>\nint main() {{ {fault} }}\n")
    done = compile_and_run([source], sanitizers, tmp_path)
    assert done.returncode != 0
    assert report in done.stderr
