"""One direction of KV between pools of a GPU and the host tier: begins the work of a batch on two
streams, one for kernels, one for the bus.

A batch goes one of two ways: a kernel that writes or reads the tier over the bus, or a kernel
between the pool and a piece of device memory in the tier's order, whose long runs a copy engine
carries. Waits for nothing; which batch, and when a slot is free, is `stream_copies`' business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from seesaw.cuda.batch_copy import Run
from seesaw.cuda.streams import Event, Stream
from seesaw.kvcache.batches import Batch, part_bytes
from seesaw.kvcache.copies import Job, tier_view
from seesaw.ops.kv_gather import kv_gather
from seesaw.ops.kv_scatter import kv_scatter

LEAST_IDS = 1024


@dataclass(slots=True)
class _Slot:
    """`staging`: on the device. `ids`: of blocks and slots, on the host (page-locked) and on the
    device. They grow as batches need it."""

    staging: torch.Tensor
    ids_host: torch.Tensor
    ids: torch.Tensor


class Lane:
    """`store`: from pools to the tier. `copy_runs` begins to copy runs of bytes on the current
    stream, as `cuda.batch_copy` does."""

    def __init__(
        self, store: bool, device: torch.device, kernels: Stream, bus: Stream,
        copy_runs: Callable[[Sequence[Run]], None], num_slots: int,
    ) -> None:  # fmt: skip
        self._store = store
        self._pin = device.type == "cuda"
        self._kernels, self._bus = kernels, bus
        self._copy_runs = copy_runs
        self._slots = [self._new_slot() for _ in range(num_slots)]

    def begin(self, index: int, batch: Batch, after: Iterable[Event]) -> Event:
        """Begin to copy `batch`, which has parts, when `after` are over, with slot `index`, which
        is free; returns what is over when its last byte is in place."""
        job = batch.first
        assert job is not None, "a batch without parts"
        slot = self._slots[index]
        pool = _pool_view(job)
        if batch.by_kernel:
            tier = tier_view(job)
            self._hold(after)
            self._move_blocks(slot, batch, pool, tier)
            return self._kernels.record()
        staged_bytes = batch.staged_bytes
        if slot.staging.nbytes < staged_bytes:
            slot.staging = self._kernels.empty(staged_bytes)
        runs = list(self._runs(batch, slot.staging.data_ptr(), job.tier.tensor.data_ptr()))
        aside = _staging_view(job, slot.staging[:staged_bytes])
        if self._store:
            self._hold(after)
            self._move_blocks(slot, batch, pool, aside)
            self._bus.wait(self._kernels.record())
            self._bus.run(lambda: self._copy_runs(runs))
            return self._bus.record()
        # What is in the tier is there already: only the pool has to be waited for.
        self._bus.run(lambda: self._copy_runs(runs))
        self._hold(after)
        self._kernels.wait(self._bus.record())
        self._move_blocks(slot, batch, pool, aside)
        return self._kernels.record()

    def _hold(self, after: Iterable[Event]) -> None:
        for event in after:
            self._kernels.wait(event)

    def _move_blocks(
        self, slot: _Slot, batch: Batch, pool: torch.Tensor, tier: torch.Tensor
    ) -> None:
        count = len(batch.blocks)
        if slot.ids.numel() < 2 * count:
            slot.ids_host, slot.ids = self._new_ids(2 * count)
        ids_host, ids = slot.ids_host[: 2 * count], slot.ids[: 2 * count]
        ids_host.copy_(torch.tensor(batch.blocks + batch.slots(), dtype=torch.int32))
        move = kv_gather if self._store else kv_scatter

        def work() -> None:
            ids.copy_(ids_host, non_blocking=True)
            move(pool, tier, ids[:count], ids[count:])

        self._kernels.run(work)

    def _runs(self, batch: Batch, staging: int, tier: int) -> Iterable[Run]:
        for run in batch.tier_runs():
            aside, there = staging + run.staged, tier + run.tier
            target, source = (there, aside) if self._store else (aside, there)
            yield Run(target, source, run.nbytes)

    def _new_slot(self) -> _Slot:
        return _Slot(self._kernels.empty(0), *self._new_ids(LEAST_IDS))

    def _new_ids(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        host = torch.empty(count, dtype=torch.int32, pin_memory=self._pin)
        return host, self._kernels.empty(4 * count).view(torch.int32)


def _pool_view(job: Job) -> torch.Tensor:
    """`[layer][block][head][k|v][block_size][head_dim]` of the layers and heads that are copied."""
    layers, heads = job.copy.layers, job.copy.heads
    above, first = job.copy.pool.layers.start, job.copy.pool.kv_heads.start
    held = job.kv.pool[layers.start - above : layers.stop - above]
    return held[:, :, heads.start - first : heads.stop - first]


def _staging_view(job: Job, staging: torch.Tensor) -> torch.Tensor:
    """As `tier_view`, of memory that has these heads and layers alone."""
    copy = job.copy
    num_blocks = staging.nbytes // part_bytes(copy)
    shape = copy.tier.of_rank(num_blocks, copy.heads, copy.layers)
    return staging.view(job.kv.pool.dtype).as_strided(shape.view_shape, shape.view_strides)
