"""What `hidden_copies.py` holds copies of KV against: how fast a thread on each core copies from
memory to memory, what other processes take of the cores, what the ranks' own copies take of them.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil
import torch

COPY_BYTES = 256 * 2**20
PAGE = 4096


def copy_rate(core: int, start_s: float, pieces: bool) -> float:
    """Bytes copied per second of its core by one thread on `core`, from `start_s` on; median of
    five. Time that others had of the core is not counted."""
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    source, target = (torch.ones(COPY_BYTES // PAGE, PAGE, dtype=torch.uint8) for _ in range(2))
    places = torch.randperm(len(source), generator=torch.Generator().manual_seed(core))
    seconds = []
    while time.perf_counter() < start_s:
        pass
    for _ in range(5):
        began_s = time.thread_time()
        if pieces:
            torch.index_select(source, 0, places, out=target)
        else:
            memmove(target, source)
        seconds.append(time.thread_time() - began_s)
    return COPY_BYTES / statistics.median(seconds)


def memmove(target: torch.Tensor, source: torch.Tensor) -> None:
    """The C library's, of all of it."""
    memoryview(target.numpy()).cast("B")[:] = memoryview(source.numpy()).cast("B")


class Memcpy:
    """Processes of one thread on each of two cores."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))
        self._cores = sorted(os.sched_getaffinity(0))[:2]
        self._rate(self._cores)  # starts them

    def rates(self) -> dict[str, float]:
        """Bytes per second of each core: `alone` with the other one at rest, `both` with both
        copying, `pieces` likewise in pages from random places."""
        cores = self._cores
        return {
            "alone": self._rate(cores[:1]),
            "both": self._rate(cores),
            "pieces": self._rate(cores, pieces=True),
        }

    def _rate(self, cores: Sequence[int], pieces: bool = False) -> float:
        start_s = time.perf_counter() + 0.3
        found = [self._pool.submit(copy_rate, core, start_s, pieces) for core in cores]
        return statistics.mean(one.result() for one in found)

    def close(self) -> None:
        self._pool.shutdown()


def core_s_beside() -> float:
    """Seconds of cores that the ranks' threads have had, but for those that compute or carry
    messages."""
    found = 0.0
    for rank in psutil.Process().children():
        if "seesaw.engine.worker" in rank.cmdline():
            for thread in Path(f"/proc/{rank.pid}/task").iterdir():
                sends = (thread / "comm").read_text().startswith("ZMQ")
                if int(thread.name) != rank.pid and not sends:
                    found += int((thread / "schedstat").read_text().split()[0]) / 1e9
    return found


class Others:
    """What share of the cores' time processes other than this one and its children took."""

    def __init__(self) -> None:
        self._began = self._look()

    def share(self) -> float:
        """Since it was made."""
        taken = (now - then for now, then in zip(self._look(), self._began, strict=True))
        all_s, own_s, elapsed_s = taken
        return max(0.0, all_s - own_s) / (elapsed_s * (os.cpu_count() or 1))

    @staticmethod
    def _look() -> tuple[float, float, float]:
        times = psutil.cpu_times()
        me = psutil.Process()
        own = [one.cpu_times() for one in (me, *me.children(recursive=True))]
        busy_s = times.user + times.nice + times.system
        return busy_s, sum(one.user + one.system for one in own), time.perf_counter()
