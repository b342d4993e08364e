"""What stream copies carry at once: parts of jobs (a tier block of each) that one launch can take,
up to so many bytes, in the order in which the jobs came.

Arithmetic only; a part goes one of two ways, by how long its runs of bytes in the tier are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from seesaw.kvcache.copies import Job
from seesaw.layout.kv import KVCopy, TierRun


def part_bytes(copy: KVCopy) -> int:
    """Of one tier block set aside, as if it were full."""
    return copy.tier.of_rank(1, copy.heads, copy.layers).block_bytes


def block_bytes(copy: KVCopy) -> int:
    """That are copied of one device block."""
    return copy.heads.size * copy.layers.size * 2 * copy.pool.tile_bytes


def blocks_per_part(copy: KVCopy) -> int:
    return copy.tier.block_tokens // copy.pool.block_size


def run_bytes(copy: KVCopy, num_blocks: int) -> int:
    """Of each run of a tier block."""
    return next(copy.runs(num_blocks)).nbytes


@dataclass(slots=True)
class Batch:
    """Parts of jobs that are alike: the same pool, layers and heads, the same way over the bus.
    `first` stands for all; None where there are no parts, but jobs of no bytes that end."""

    first: Job | None = None
    by_kernel: bool = False
    blocks: list[int] = field(default_factory=list)
    parts: list[tuple[int, int]] = field(default_factory=list)
    """(tier block, how many of `blocks` go there)"""
    sources: list[Job] = field(default_factory=list)
    """Jobs that have parts in it; they keep pool and tier alive."""
    shares: dict[int, int] = field(default_factory=dict)
    """How many of `blocks` are those of a job, by its key."""
    ends: list[Job] = field(default_factory=list)
    """Jobs that are complete with it."""

    @property
    def staged_bytes(self) -> int:
        """That all parts take when they are set aside."""
        return 0 if self.first is None else len(self.parts) * part_bytes(self.first.copy)

    def tier_runs(self) -> Iterator[TierRun]:
        """Of all parts one after another; `tier` counts from the begin of the tier."""
        assert self.first is not None, "a batch without parts has no runs"
        copy = self.first.copy
        for index, (tier_block, num_blocks) in enumerate(self.parts):
            aside, base = index * part_bytes(copy), tier_block * copy.tier.block_bytes
            for run in copy.runs(num_blocks):
                yield TierRun(aside + run.staged, base + run.tier, run.nbytes)

    def slots(self) -> list[int]:
        """Where each of `blocks` goes, as `ops.kv_gather` counts: in the tier by kernel, else in
        what is set aside."""
        assert self.first is not None, "a batch without parts has no slots"
        per_part = blocks_per_part(self.first.copy)
        return [
            (tier_block if self.by_kernel else index) * per_part + number
            for index, (tier_block, num_blocks) in enumerate(self.parts)
            for number in range(num_blocks)
        ]


class Batches:
    """Jobs in, batches out: first in, first out, no part left out or twice.

    A batch sets aside at most `most_bytes`, or is one part that is larger. Parts whose runs are
    shorter than `crossover_bytes` go by kernel.
    """

    def __init__(self, most_bytes: int, crossover_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._crossover_bytes = crossover_bytes
        self._waiting: deque[tuple[Job, int]] = deque()  # with the part that is next

    def add(self, job: Job) -> None:
        self._waiting.append((job, 0))

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def next(self) -> Batch:
        """What can be carried at once of what was added first."""
        batch = Batch()
        while self._waiting:
            job, part = self._waiting[0]
            copy = job.copy
            if copy.num_bytes == 0 or part == len(copy.tier_blocks):
                batch.ends.append(job)
                self._waiting.popleft()
                continue
            per_part = blocks_per_part(copy)
            blocks = copy.blocks[part * per_part : (part + 1) * per_part]
            by_kernel = run_bytes(copy, len(blocks)) < self._crossover_bytes
            if not self._fits(batch, job, by_kernel):
                break
            if batch.first is None:
                batch.first, batch.by_kernel = job, by_kernel
            if not batch.sources or batch.sources[-1] is not job:
                batch.sources.append(job)
            batch.shares[job.key] = batch.shares.get(job.key, 0) + len(blocks)
            batch.blocks += blocks
            batch.parts.append((copy.tier_blocks[part], len(blocks)))
            self._waiting[0] = (job, part + 1)
        return batch

    def _fits(self, batch: Batch, job: Job, by_kernel: bool) -> bool:
        first = batch.first
        if first is None:
            return True
        alike = (first.kv is job.kv, first.copy.layers, first.copy.heads, batch.by_kernel)
        if alike != (True, job.copy.layers, job.copy.heads, by_kernel):
            return False
        return batch.staged_bytes + part_bytes(job.copy) <= self._most_bytes
