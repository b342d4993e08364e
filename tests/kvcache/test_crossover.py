"""What the measurement of the crossover does to the device, without one: both ways move the same
bytes, through the ops as they check what they are given. And what follows from its times."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import pytest
import torch

from seesaw.cuda.batch_copy import Run
from seesaw.kvcache import cuda_copies
from seesaw.kvcache.cuda_copies import Times, crossover_bytes
from seesaw.ops import triton_backend

RUN_BYTES = (512, 4096)


@pytest.fixture
def in_interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SEESAW_KERNELS", "triton")
    triton_backend.runs_on.cache_clear()
    yield
    monkeypatch.undo()
    triton_backend.runs_on.cache_clear()


@pytest.mark.usefixtures("in_interpreter")
@pytest.mark.parametrize("store", [True, False])
def test_both_ways_are_carried_out_by_the_ops(
    store: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device != "cpu":
        pytest.skip("the stand-in for copy engines copies on the host")
    copied: list[int] = []
    worked: list[object] = []

    def copy_runs(runs: Sequence[Run]) -> None:
        for run in runs:
            ctypes.memmove(run.target, run.source, run.nbytes)
        copied.append(sum(run.nbytes for run in runs))

    def seconds(stream: object, work: Callable[[], None]) -> float:
        worked.append(stream)
        work()
        return 1.0

    monkeypatch.setattr(cuda_copies, "PROBED_BYTES", 16384)
    monkeypatch.setattr(cuda_copies, "PROBED_RUNS", RUN_BYTES)
    monkeypatch.setattr(cuda_copies, "copy_runs", copy_runs)
    monkeypatch.setattr(cuda_copies, "_seconds", seconds)
    monkeypatch.setattr(
        cuda_copies, "streams", lambda device: SimpleNamespace(store="store", load="load")
    )
    times = cuda_copies._times(torch.device("cpu"), store)
    assert [one.run_bytes for one in times] == list(RUN_BYTES)
    assert worked == ["store" if store else "load"] * 4
    assert copied == [16384] * 2


def test_without_kernels_all_goes_by_copy_engine(plain_torch: None) -> None:
    triton_backend.runs_on.cache_clear()
    assert cuda_copies.measure_crossover(torch.device("cpu")) == (0, 0)


@pytest.mark.parametrize(
    ("kernel_s", "engine_s", "expected"),
    [
        ((1, 1, 1), (9, 2, 1), 16),
        ((1, 1, 1), (1, 1, 1), 4),
        ((1, 1, 1), (9, 9, 9), 32),
        ((5, 1, 5), (1, 9, 1), 16),  # the shortest run is an exception
    ],
)
def test_the_crossover_is_where_engines_win_for_good(
    kernel_s: tuple[float, ...], engine_s: tuple[float, ...], expected: int
) -> None:
    times = [Times(*row) for row in zip((4, 8, 16), kernel_s, engine_s, strict=True)]
    assert crossover_bytes(random.sample(times, 3)) == expected
