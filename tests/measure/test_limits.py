"""Limits are taken with the threads and the instruction set of the kernels, best of several."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from seesaw.errors import ConfigError
from seesaw.measure import limits
from seesaw.measure.limits import Limits, LimitsProbe, last_cache_bytes

LIMITS = Limits(
    read_bytes_per_s=50e9, bfloat16_flops=1000e9, float32_flops=500e9, isa="avx512bf16",
    num_threads=2,
)  # fmt: skip


class FakeCpu:
    """Rates in a fixed order, and what was asked for."""

    def __init__(self) -> None:
        self.reads = iter((3.0, 9.0, 5.0, 1.0, 2.0))
        self.multiplies = {"bfloat16": iter((1.0, 2.0, 8.0, 4.0, 4.0)), "float32": iter([7.0] * 5)}
        self.spans: set[tuple[int, int]] = set()

    def read_rate(self, address: int, nbytes: int) -> float:
        self.spans.add((address, nbytes))
        return next(self.reads)

    def multiply_rate(self, dtype: str, seconds: float) -> float:
        assert seconds > 0
        return next(self.multiplies[dtype])

    def isa(self) -> str:
        return "avx2"

    def num_threads(self) -> int:
        return 3


def test_the_best_of_the_passes_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LEAST_BUFFER_BYTES", 10_000)
    monkeypatch.setattr(limits, "last_cache_bytes", lambda: 3000)
    fake = FakeCpu()
    probe = LimitsProbe()
    monkeypatch.setattr(probe, "_cpu", fake)
    found = probe.measure()
    assert found == Limits(
        read_bytes_per_s=9.0, bfloat16_flops=8.0, float32_flops=7.0, isa="avx2", num_threads=3
    )
    ((address, nbytes),) = fake.spans
    assert nbytes == 12_000
    assert address % 64 == 0


def test_whoever_measures_is_not_kept_on_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = pytest.importorskip("seesaw._cpu")
    monkeypatch.setattr(limits, "LEAST_BUFFER_BYTES", 10_000)
    monkeypatch.setattr(limits, "last_cache_bytes", lambda: 3000)
    cores, threads = os.sched_getaffinity(0), cpu.num_threads()
    if len(cores) == 1:
        pytest.skip("there is one core")
    cpu.configure_threads(1, [min(cores)])
    try:
        LimitsProbe().measure()
    finally:
        cpu.configure_threads(threads)
    assert os.sched_getaffinity(0) == cores


@pytest.fixture
def restored_isa() -> Iterator[None]:
    cpu = pytest.importorskip("seesaw._cpu")
    before = cpu.isa()
    yield
    cpu.set_isa(before)


@pytest.mark.usefixtures("restored_isa")
@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512", "avx512bf16"])
def test_the_module_measures_with_each_instruction_set(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seesaw import _cpu

    try:
        _cpu.set_isa(isa)
    except ValueError as refused:
        pytest.skip(str(refused))
    monkeypatch.setattr(limits, "LEAST_BUFFER_BYTES", 2**20 + 77)  # no whole number of vectors
    monkeypatch.setattr(limits, "last_cache_bytes", lambda: 0)
    found = LimitsProbe().measure()
    assert found.isa == isa
    assert found.num_threads == _cpu.num_threads()
    assert min(found.read_bytes_per_s, found.bfloat16_flops, found.float32_flops) > 1e6
    with pytest.raises(ValueError, match="float16"):
        _cpu.multiply_rate("float16", 0.001)


def test_without_the_module_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "seesaw._cpu", None)
    monkeypatch.delattr("seesaw._cpu", raising=False)
    with pytest.raises(ConfigError, match="not built"):
        LimitsProbe()


def test_the_bound_is_the_longer_of_reading_and_computing() -> None:
    assert LIMITS.bound_s(50e9, 1e9, "bfloat16") == pytest.approx(1.0)
    assert LIMITS.bound_s(50e3, 2000e9, "bfloat16") == pytest.approx(2.0)
    assert LIMITS.bound_s(50e3, 2000e9, "float32") == pytest.approx(4.0)
    assert LIMITS.describe() == (
        "50.0 GB/s, 1,000 GFLOP/s in bfloat16, 500 in float32 (avx512bf16, 2 threads)"
    )
    assert LIMITS.figures()["isa"] == "avx512bf16"


def test_the_largest_cache_counts(tmp_path: Path) -> None:
    assert last_cache_bytes(tmp_path / "nothing here") == 0
    for index, size in enumerate(("48K", "1024K", "32M", "odd")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert last_cache_bytes(tmp_path) == 32 * 2**20
