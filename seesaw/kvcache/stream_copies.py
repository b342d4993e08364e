"""Copies of KV on streams of a GPU: for each direction a thread that begins batches and one that
hears of their ends. No thread that computes waits for either.

Owns the order: jobs of a direction are reported in the order in which they were submitted. After
an error in a direction nothing more is begun there; what was waiting is reported with that error.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch

from seesaw.cuda.streams import Event
from seesaw.kvcache.batches import Batch, Batches, block_bytes
from seesaw.kvcache.copies import Job, Report
from seesaw.kvcache.lane import Lane
from seesaw.kvcache.ring import Ring

CLOSE_CHECK_S = 0.05
"""How often a thread that waits for the tier to be page-locked looks whether it should end."""


@dataclass(frozen=True, slots=True)
class Direction:
    """`batch_bytes` is what one batch sets aside, `num_slots` how many are under way at most,
    `crossover_bytes` the length of runs from which on copy engines carry them."""

    lane: Lane
    num_slots: int
    batch_bytes: int
    crossover_bytes: int


class StreamCopies:
    """`Copies`. `now` records an event on the current stream of whoever submits."""

    name = "CUDA streams"

    def __init__(
        self, report: Report, store: Direction, load: Direction, now: Callable[[], Event]
    ) -> None:
        self.now = now
        self._workers = {
            True: _Worker("store", store, report),
            False: _Worker("load", load, report),
        }

    def submit(self, job: Job) -> None:
        self._workers[job.store].submit(job, job.ready or self.now())

    def close(self) -> None:
        for worker in self._workers.values():
            worker.stop()
        for worker in self._workers.values():
            worker.join()


@dataclass(frozen=True, slots=True)
class _Begun:
    """A batch that is under way since `began_s`, could not begin before `ready`, and is done when
    `done` is; both None where there is nothing to wait for."""

    batch: Batch
    began_s: float
    ready: Event | None = None
    done: Event | None = None
    error: Exception | None = None


class _Worker:
    """Of one direction."""

    def __init__(self, name: str, direction: Direction, report: Report) -> None:
        self._lane = direction.lane
        self._ring = Ring(direction.num_slots)
        self._batches = Batches(direction.batch_bytes, direction.crossover_bytes)
        self._report = report
        self._closed = False
        self._error: Exception | None = None
        self._submitted: queue.SimpleQueue[tuple[Job, Event] | None] = queue.SimpleQueue()
        self._begun: queue.SimpleQueue[_Begun | None] = queue.SimpleQueue()
        self._ready: dict[int, Event] = {}  # by key of jobs that are not begun to their end
        self._threads = [
            threading.Thread(target=work, name=f"seesaw-kv-{name}-{what}", daemon=True)
            for work, what in ((self._begin_all, "begin"), (self._end_all, "end"))
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job, ready: Event) -> None:
        self._submitted.put((job, ready))

    def stop(self) -> None:
        self._closed = True
        self._submitted.put(None)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    # -- one thread -------------------------------------------------------------------------------

    @torch.inference_mode()
    def _begin_all(self) -> None:
        while self._take_jobs() and not self._closed:
            begun = self._begin(self._batches.next())
            if begun is not None:
                self._begun.put(begun)
        self._begun.put(None)

    def _take_jobs(self) -> bool:
        """All that are submitted by now, at least one unless some are left; False at the end."""
        while True:
            try:
                taken = self._submitted.get(block=not self._batches)
            except queue.Empty:
                return True
            if taken is None:
                return False
            job, self._ready[job.key] = taken
            self._batches.add(job)

    def _begin(self, batch: Batch) -> _Begun | None:
        """None when closed meanwhile."""
        ready = [self._ready[job.key] for job in batch.sources]
        for job in batch.ends:
            del self._ready[job.key]
        began_s = time.perf_counter()
        if batch.first is None or self._error is not None:
            return _Begun(batch, began_s, error=self._error)
        try:
            slot = self._ring.take()
            if not self._is_page_locked(batch):
                return None
            began_s = time.perf_counter()
            done = self._lane.begin(slot, batch, ready)
            self._ring.give(slot, done)
        except Exception as error:
            self._error = error
            return _Begun(batch, began_s, error=error)
        return _Begun(batch, began_s, ready[-1], done)

    def _is_page_locked(self, batch: Batch) -> bool:
        """Waits for those pieces of the tier that the batch touches; False when closed."""
        assert batch.first is not None, "a batch without parts"
        tier = batch.first.tier
        stop = (1 + max(block for block, _ in batch.parts)) * tier.shape.block_bytes
        while not self._closed:
            if tier.is_page_locked(stop, CLOSE_CHECK_S):
                return True
        return False

    # -- the other --------------------------------------------------------------------------------

    def _end_all(self) -> None:
        num_bytes: Counter[int] = Counter()  # by key
        began_s: dict[int, float] = {}
        last_s = 0.0
        failed: Exception | None = None
        while (begun := self._begun.get()) is not None:
            batch, first_s = begun.batch, max(begun.began_s, last_s)
            try:
                first_s = max(first_s, _wait(begun))
            except Exception as error:
                failed = self._error = error
            failed = failed or begun.error
            last_s = time.perf_counter()
            for job in batch.sources:
                began_s.setdefault(job.key, first_s)
                if failed is None:
                    num_bytes[job.key] += batch.shares[job.key] * block_bytes(job.copy)
            for job in batch.ends:
                took_s = last_s - began_s.pop(job.key, last_s)
                if not self._closed:
                    self._report(job.key, num_bytes.pop(job.key, 0), took_s, failed)
            del begun, batch  # and with them what keeps pool and tier


def _wait(begun: _Begun) -> float:
    """Until it is done. Returns when it could begin, if that was found out here, else 0."""
    free_s = 0.0
    if begun.ready is not None and not begun.ready.query():
        begun.ready.synchronize()
        free_s = time.perf_counter()
    if begun.done is not None:
        begun.done.synchronize()
    return free_s
