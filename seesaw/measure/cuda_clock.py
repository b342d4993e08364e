"""Seconds that calls take on a CUDA device, by its own events.

Imports torch, which the rest of the package does without.
"""

from __future__ import annotations

import time

import torch

from seesaw.measure.timer import Call

SLEEP_CYCLES = 10_000_000
FIRST_AHEAD_S = 0.0005
MOST_AHEAD_S = 0.05
ATTEMPTS = 4
LONGER = 1.5
SAME = 0.97


class CudaClock:
    """A `timer.Clock`: from the start of the first call's first kernel to the end of the last one's
    last, on the current stream.

    The device is kept asleep while the host queues the calls, so that no time passes between two
    kernels because the host is late; where the host was late all the same, once more with a longer
    sleep. A call that waits for the device counts with its waiting.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start, self._end = (_event() for _ in range(2))
        self._ahead_s = FIRST_AHEAD_S
        self._cycles_per_s = 0.0
        self._run(lambda: None, 1, SLEEP_CYCLES)
        slept_s, _ = self._run(lambda: _sleep(SLEEP_CYCLES), 1, 0)
        self._cycles_per_s = SLEEP_CYCLES / slept_s

    def __call__(self, call: Call, calls: int) -> float:
        device_s, host_s = self._behind(self._ahead_s, call, calls)
        for _ in range(ATTEMPTS):
            if host_s <= self._ahead_s or self._ahead_s >= MOST_AHEAD_S:
                break
            longer_s = min(MOST_AHEAD_S, LONGER * host_s)
            before_s, (device_s, host_s) = device_s, self._behind(longer_s, call, calls)
            if device_s > SAME * before_s:
                break  # the host was behind because it waited for the device
            self._ahead_s = longer_s
        return device_s

    def _behind(self, slept_s: float, call: Call, calls: int) -> tuple[float, float]:
        return self._run(call, calls, int(slept_s * self._cycles_per_s))

    def _run(self, call: Call, calls: int, sleep_cycles: int) -> tuple[float, float]:
        """Seconds on the device, and of the host to queue the calls."""
        with torch.cuda.device(self._device):
            if sleep_cycles:
                _sleep(sleep_cycles)
            self._start.record()
            start_s = time.perf_counter()
            for _ in range(calls):
                call()
            host_s = time.perf_counter() - start_s
            self._end.record()
            self._end.synchronize()
            return self._start.elapsed_time(self._end) / 1e3, host_s


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _sleep(cycles: int) -> None:
    torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]
