"""The pool that kernels run on under AddressSanitizer, UndefinedBehaviorSanitizer and
ThreadSanitizer: loops, barriers, regions, callers, pools that come and go, pools of lanes.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.csrc.sanitizers import ROOT, SANITIZERS, compile_and_run

SOURCES = [ROOT / "csrc/cpu/thread_pool.cpp", Path(__file__).parent / "thread_pool_test.cpp"]


@pytest.mark.parametrize("sanitizers", SANITIZERS)
def test_thread_pool_under(sanitizers: str, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    done = compile_and_run(SOURCES, sanitizers, tmp_path, str(seed))
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}\n{done.stderr}"
    assert done.stderr == "", f"seed {seed}"
    assert len(done.stdout.splitlines()) == 8
