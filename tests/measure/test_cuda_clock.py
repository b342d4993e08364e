"""The clock of a CUDA device against a device of paper, whose kernels run one after another."""

from __future__ import annotations

import contextlib

import pytest
import torch

from seesaw.measure import cuda_clock
from seesaw.measure.cuda_clock import MOST_AHEAD_S, CudaClock
from seesaw.measure.timer import alternate

CYCLES_PER_S = 2e9


class Device:
    """Time of the host, and the time at which the device will have done all that was queued."""

    def __init__(self) -> None:
        self.host_s = 0.0
        self.free_s = 0.0
        self.sleeps: list[float] = []

    def launch(self, host_s: float, device_s: float) -> None:
        self.host_s += host_s
        self.free_s = max(self.free_s, self.host_s) + device_s

    def sleep(self, cycles: int) -> None:
        self.sleeps.append(cycles / CYCLES_PER_S)
        self.launch(0.0, cycles / CYCLES_PER_S)

    def wait(self) -> None:
        self.host_s = max(self.host_s, self.free_s)


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            device.launch(0.0, 0.0)
            self.at_s = device.free_s

        def synchronize(self) -> None:
            device.wait()

        def elapsed_time(self, end: Event) -> float:
            return (end.at_s - self.at_s) * 1e3

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", device.sleep)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(cuda_clock.time, "perf_counter", lambda: device.host_s)
    return device


@pytest.mark.parametrize("launch_s", [1e-6, 3e-5, 4e-4])
def test_a_slow_host_does_not_count(paper: Device, launch_s: float) -> None:
    clock = CudaClock(torch.device("cuda"))
    taken_s = clock(lambda: paper.launch(launch_s, 1e-5), 50)
    assert taken_s == pytest.approx(50 * 1e-5)


def test_a_call_that_waits_counts_with_its_waiting(paper: Device) -> None:
    clock = CudaClock(torch.device("cuda"))

    def call() -> None:
        paper.launch(1e-4, 1e-5)
        paper.wait()

    # The first one's launch hides behind the sleep; the others' does not.
    assert clock(call, 10) == pytest.approx(9 * 1e-4 + 10 * 1e-5)
    assert max(paper.sleeps[2:]) <= MOST_AHEAD_S


def test_candidates_on_the_device(paper: Device) -> None:
    clock = CudaClock(torch.device("cuda"))
    found = alternate(
        {
            "a": lambda: paper.launch(5e-5, 1e-5),
            "b": lambda: paper.launch(5e-5, 2e-3),
        },
        batches=3,
        batch_s=0.004,
        clock=clock,
    )
    assert found["a"].median_s == pytest.approx(1e-5)
    assert found["b"].median_s == pytest.approx(2e-3)
    assert found["b"].calls == 2


def test_on_a_gpu(device: str) -> None:
    if device != "cuda":
        pytest.skip("needs --device cuda")
    clock = CudaClock(torch.device("cuda"))
    x = torch.ones(2**26, device="cuda")
    one, four = clock(lambda: x.add_(1.0), 10), clock(lambda: x.add_(1.0), 40)
    assert 3.0 < four / one < 5.0
