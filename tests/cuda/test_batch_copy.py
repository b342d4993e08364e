"""Batch copies against a driver of their own making, compiled from C with the types of cuda.h: what
is passed, what an older driver or device gets, what an error says.
"""

from __future__ import annotations

import ctypes
import random
import subprocess
from pathlib import Path

import pytest
import torch

from seesaw.cuda import batch_copy
from seesaw.cuda.batch_copy import Run
from tests.csrc.sanitizers import COMPILER

STREAM = 0x7777


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None:
        pytest.skip("no compiler here")
    path = tmp_path_factory.mktemp("driver") / "libfake.so"
    source = Path(__file__).parent / "fake_driver.c"
    command = [COMPILER, "-x", "c", "-shared", "-fPIC", str(source), "-o", str(path)]
    subprocess.run(command, check=True)
    return path


def make_driver(
    library: Path, mode: bytes, monkeypatch: pytest.MonkeyPatch
) -> tuple[batch_copy._Driver, ctypes.CDLL]:
    loaded = ctypes.CDLL(str(library))
    for name in ("num_batches", "num_copies"):
        ctypes.c_int.in_dll(loaded, name).value = 0
    ctypes.c_char_p.in_dll(loaded, "mode").value = mode
    with monkeypatch.context() as patched:
        patched.setattr(batch_copy.ctypes, "CDLL", lambda name: loaded)
        return batch_copy._Driver(), loaded


def make_runs() -> tuple[list[Run], torch.Tensor, torch.Tensor, torch.Tensor]:
    source = torch.randint(0, 256, (5000,), dtype=torch.uint8)
    target = torch.randint(0, 256, (5000,), dtype=torch.uint8)
    expected = target.clone()
    runs = []
    for at in range(0, 5000, 500):
        size, start = random.randint(1, 500), random.randint(0, 4500)
        expected[at : at + size] = source[start : start + size]
        runs.append(Run(target.data_ptr() + at, source.data_ptr() + start, size))
    return runs, source, target, expected


@pytest.mark.parametrize(
    ("mode", "batches", "copies"), [(b"batch", 2, 0), (b"loop", 0, 20), (b"refuse", 0, 20)]
)
def test_runs_are_copied(
    library: Path, mode: bytes, batches: int, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, loaded = make_driver(library, mode, monkeypatch)
    for _ in range(2):
        runs, _source, target, expected = make_runs()
        driver.copy(runs, STREAM)
        assert torch.equal(target, expected)
    counted = [ctypes.c_int.in_dll(loaded, name).value for name in ("num_batches", "num_copies")]
    assert counted == [batches, copies]


def test_an_error_names_the_call_the_reason_and_the_run(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, _ = make_driver(library, b"fail", monkeypatch)
    runs, _source, _target, _ = make_runs()
    with pytest.raises(RuntimeError, match=r"cuMemcpyBatchAsync: an illegal .* 700") as caught:
        driver.copy(runs, STREAM)
    assert str(runs[1]) in str(caught.value)
