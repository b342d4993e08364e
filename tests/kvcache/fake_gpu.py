"""A GPU as far as streams go, on the CPU: work is done by a thread of its own, in the order of each
stream, in any order between streams that events allow. Begun work is often done late.
"""

from __future__ import annotations

import ctypes
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from seesaw.cuda.batch_copy import Run
from seesaw.kvcache.copies import Report
from seesaw.kvcache.lane import Lane
from seesaw.kvcache.stream_copies import Direction, StreamCopies

PATIENCE_S = 60.0


class FakeEvent:
    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu = gpu
        self.done = False

    def query(self) -> bool:
        with self._gpu.changed:
            self._gpu.raise_if_failed()
            return self.done

    def synchronize(self) -> None:
        with self._gpu.changed:
            over = self._gpu.changed.wait_for(lambda: self.done or self._gpu.failed, PATIENCE_S)
            assert over, "an event that never comes"
            self._gpu.raise_if_failed()


class FakeStream:
    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu = gpu
        self.work: deque[Callable[[], None] | tuple[str, FakeEvent]] = deque()
        gpu.streams.append(self)

    def run(self, work: Callable[[], None]) -> None:
        self._put(work)

    def record(self) -> FakeEvent:
        event = FakeEvent(self._gpu)
        self._put(("record", event))
        return event

    def wait(self, event: Any) -> None:
        self._put(("wait", event))

    def empty(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def _put(self, item: Any) -> None:
        with self._gpu.changed:
            self.work.append(item)
            self._gpu.changed.notify_all()

    @property
    def is_ready(self) -> bool:
        head = self.work[0] if self.work else None
        return head is not None and not (
            isinstance(head, tuple) and head[0] == "wait" and not head[1].done
        )


class FakeGpu:
    """`fail_at`: which piece of work fails, and with it, as on a GPU, all that comes later."""

    def __init__(self, seed: int, fail_at: int | None = None) -> None:
        self.changed = threading.Condition()
        self.streams: list[FakeStream] = []
        self.failed = False
        self.compute = FakeStream(self)
        self._rng = random.Random(seed)
        self._fail_at = fail_at
        self._num_done = 0
        self._held = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="fake-gpu", daemon=True)
        self._thread.start()

    def now(self) -> FakeEvent:
        return self.compute.record()

    def hold(self, held: bool) -> None:
        """Do nothing meanwhile."""
        with self.changed:
            self._held = held
            self.changed.notify_all()

    def raise_if_failed(self) -> None:
        if self.failed:
            raise RuntimeError("the device has failed")

    @torch.inference_mode()
    def _run(self) -> None:
        while (stream := self._next()) is not None:
            work = stream.work[0]
            if callable(work):
                self._num_done += 1
                if self._num_done != self._fail_at:
                    work()
            with self.changed:
                stream.work.popleft()
                if isinstance(work, tuple) and work[0] == "record":
                    work[1].done = True
                if self._num_done == self._fail_at:
                    self.failed = True
                self.changed.notify_all()

    def _next(self) -> FakeStream | None:
        with self.changed:
            while True:
                self.changed.wait_for(lambda: self._closed or self._ready())
                if self._closed:
                    return None
                if self._rng.random() < 0.7:
                    return self._rng.choice(self._ready())
                self.changed.wait(1e-4)  # whoever submits gets ahead

    def _ready(self) -> list[FakeStream]:
        if self._held or self.failed:
            return []
        return [stream for stream in self.streams if stream.is_ready]

    def close(self) -> None:
        with self.changed:
            self._closed = True
            self.changed.notify_all()
        self._thread.join()


def copy_runs(runs: Sequence[Run]) -> None:
    """As seesaw.cuda.batch_copy's, of memory of the host."""
    for run in runs:
        ctypes.memmove(run.target, run.source, run.nbytes)


def stream_copies(
    gpu: FakeGpu, report: Report, *, num_slots: int = 2, batch_bytes: int = 4096,
    crossover_bytes: int = 512, lane: type[Lane] = Lane,
) -> StreamCopies:  # fmt: skip
    """On `gpu`, as `cuda_copies` makes it."""

    def direction(store: bool) -> Direction:
        kernels, bus = FakeStream(gpu), FakeStream(gpu)
        own = lane(store, torch.device("cpu"), kernels, bus, copy_runs, num_slots)
        return Direction(own, num_slots, batch_bytes, crossover_bytes)

    return StreamCopies(report, direction(True), direction(False), gpu.now)
