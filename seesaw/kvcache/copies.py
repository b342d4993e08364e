"""Two engines that carry out copies between a pool on the CPU and the host tier in the background:
C++ threads, and torch where seesaw._cpu is not built. That of GPUs is `stream_copies`.

They copy what they are told; bounds were checked before (`KVCopy.check`). Bytes are counted as they
are copied, not derived from the plan.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from seesaw.cuda.streams import Event
from seesaw.kvcache.pool import KVCache
from seesaw.kvcache.tier import HostTier
from seesaw.layout.kv import KVCopy

MAX_JOBS = 1024
"""Unfinished jobs in the C++ engine; a submit beyond waits for one to finish."""


@dataclass(frozen=True, slots=True)
class Job:
    """A copy and the memory it is between, which it keeps alive. `store`: from `kv` to the tier.
    `ready`: what must be over first; None = what was computed when it is submitted."""

    key: int
    store: bool
    copy: KVCopy
    kv: KVCache
    tier: HostTier
    ready: Event | None = None


Report = Callable[[int, int, float, Exception | None], None]
"""(key of the job, bytes copied, seconds from the begin of its copies, what went wrong)"""


class Copies(Protocol):
    name: str

    def now(self) -> Event | None:
        """What is over when all is that was computed so far (CUDA: on the current stream); None
        where it is."""
        ...

    def submit(self, job: Job) -> None:
        """Returns before the job is done; `Report` is called from another thread when it is."""
        ...

    def close(self) -> None:
        """Drop what is unfinished; nothing is copied or reported afterwards."""
        ...


class CppCopies:
    """csrc/cpu/copy_pool: threads that hold no GIL and share out the tiles of each job."""

    name = "C++ threads"

    def __init__(self, report: Report, num_threads: int) -> None:
        """Raises ImportError where seesaw._cpu is not built."""
        from seesaw._cpu import CopyPool

        self._report = report
        self._pool = CopyPool(num_threads=num_threads, max_jobs=MAX_JOBS)
        self._jobs: dict[int, Job] = {}
        self._thread = threading.Thread(target=self._run, name="seesaw-kv-done", daemon=True)
        self._thread.start()

    def now(self) -> None:
        """A CPU has computed what was called."""

    def submit(self, job: Job) -> None:
        copy = job.copy
        pool = (job.kv.pool.data_ptr(), copy.pool_offsets(), copy.pool_strides)
        tier = (job.tier.tensor.data_ptr(), copy.tier_offsets(), copy.tier_strides)
        source, target = (pool, tier) if job.store else (tier, pool)
        self._jobs[job.key] = job  # keeps the memory of both sides
        self._pool.submit(
            key=job.key,
            source=source[0],
            source_offsets=source[1],
            source_strides=source[2],
            target=target[0],
            target_offsets=target[1],
            target_strides=target[2],
            counts=copy.counts,
            tile_bytes=copy.pool.tile_bytes,
        )

    def _run(self) -> None:
        while (done := self._pool.next_done()) is not None:
            key, num_bytes, seconds = done
            del self._jobs[key]
            self._report(key, num_bytes, seconds, None)

    def close(self) -> None:
        self._pool.close()
        self._thread.join()
        self._jobs.clear()


class TorchCopies:
    """Python threads that each carry out one job at a time with torch."""

    name = "Python threads"

    def __init__(self, report: Report, num_threads: int) -> None:
        self._report = report
        self._closed = False
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"seesaw-kv-copy-{index}", daemon=True)
            for index in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def now(self) -> None:
        """A CPU has computed what was called."""

    def submit(self, job: Job) -> None:
        self._queue.put(job)

    @torch.inference_mode()
    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            if self._closed:
                return
            num_bytes, error = 0, None
            begin_s = time.perf_counter()
            try:
                num_bytes = copy_with_torch(job)
            except Exception as caught:
                error = caught
            self._report(job.key, num_bytes, time.perf_counter() - begin_s, error)
            del job  # and with it what keeps pool and tier

    def close(self) -> None:
        self._closed = True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()


def copy_with_torch(job: Job) -> int:
    """Carry out `job`, one part of a tier block after another. Returns the bytes copied."""
    copy, pool = job.copy, job.kv.pool
    first = copy.heads.start - copy.pool.kv_heads.start
    above = copy.layers.start - copy.pool.layers.start
    held = pool[above : above + copy.layers.size, :, first : first + copy.heads.size]
    parts, size = copy.tier.parts, copy.pool.block_size
    per_part = copy.tier.run_tokens // size
    tier = tier_view(job)
    tier = tier.view(*tier.shape[:4], per_part, size, tier.shape[5])
    num_bytes = 0
    for index, start in enumerate(range(0, len(copy.blocks), per_part)):
        blocks = torch.tensor(copy.blocks[start : start + per_part])
        tier_block, part = copy.tier_blocks[index // parts], index % parts
        side = tier[tier_block * parts + part, :, :, :, : len(blocks)]
        num_bytes += side.nbytes
        if job.store:
            side.copy_(held.index_select(1, blocks).permute(2, 0, 3, 1, 4, 5))
        else:
            held.index_copy_(1, blocks, side.permute(1, 3, 0, 2, 4, 5))
    return num_bytes


def tier_view(job: Job) -> torch.Tensor:
    """`[block and part][head][layer][k|v][tokens][head_dim]` of the heads and layers that are
    copied, whatever the tier's order."""
    copy, shape = job.copy, job.tier.shape
    view = job.tier.tensor.view(job.kv.pool.dtype)
    view = view.as_strided(shape.view_shape, shape.view_strides)
    heads, layers = copy.heads, copy.layers
    return view[:, heads.start : heads.stop, layers.start : layers.stop]
