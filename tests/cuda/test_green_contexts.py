"""Splits of a GPU's SMs, against a driver of their own making compiled from C with the types of
cuda.h; and on a GPU, that kernels run on both sides of each.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch

from seesaw.cuda import green_contexts
from seesaw.cuda.green_contexts import NoGreenContexts, make_splits
from tests.csrc.sanitizers import COMPILER


@pytest.fixture
def driver(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> ctypes.CDLL:
    if COMPILER is None:
        pytest.skip("no compiler here")
    path = tmp_path / "libfake.so"
    source = Path(__file__).parent / "fake_green_driver.c"
    command = [COMPILER, "-x", "c", "-shared", "-fPIC", str(source), "-o", str(path)]
    subprocess.run(command, check=True)
    loaded = ctypes.CDLL(str(path))
    loaded.sms_of.argtypes = [ctypes.c_void_p]
    monkeypatch.setattr(green_contexts.ctypes, "CDLL", lambda name: loaded)
    return loaded


def sms(driver: ctypes.CDLL, splits: dict[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
    return {units: (driver.sms_of(a), driver.sms_of(b)) for units, (a, b) in splits.items()}


def test_each_split_has_its_units_and_the_rest(driver: ctypes.CDLL) -> None:
    found = sms(driver, make_splits(1, 16, 8))
    assert found == {units: (8 * units, 132 - 8 * units) for units in range(1, 16)}


def test_sizes_that_a_chip_cannot_have_cost_no_others(driver: ctypes.CDLL) -> None:
    ctypes.c_uint.in_dll(driver, "fits_up_to").value = 88  # groups of 14 SMs hold one unit each
    assert sorted(make_splits(1, 14, 8)) == list(range(1, 12))
    ctypes.c_uint.in_dll(driver, "fits_up_to").value = 0
    with pytest.raises(NoGreenContexts, match="SplitByCount failed with CUDA error 914"):
        make_splits(1, 14, 8)


def test_parts_that_are_rounded_up_are_left_out(driver: ctypes.CDLL) -> None:
    assert sms(driver, make_splits(1, 16, 4)) == {
        units: (4 * units, 132 - 4 * units) for units in range(2, 16, 2)
    }


def test_a_card_without_them_says_so(driver: ctypes.CDLL) -> None:
    ctypes.c_char_p.in_dll(driver, "mode").value = b"none"
    with pytest.raises(NoGreenContexts, match="cuDeviceGetDevResource failed with CUDA error 801"):
        make_splits(1, 16, 8)


def test_streams_compute_on_a_gpu(device: str) -> None:
    if device != "cuda":
        pytest.skip("needs --device cuda")
    x = torch.ones(1 << 20, device=device)  # makes the context that they share
    try:
        splits = make_splits(0, torch.cuda.get_device_properties(0).multi_processor_count // 8, 8)
    except NoGreenContexts as error:
        pytest.skip(str(error))
    for pair in splits.values():
        for handle in pair:
            stream = torch.cuda.ExternalStream(handle, x.device)
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                total = (x + 1).sum()
            stream.synchronize()
            assert total.item() == 2 << 20
