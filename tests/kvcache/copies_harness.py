"""Jobs between a tier and two pools: what they lead to, and what is begun and reported of them."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable
from typing import Any

import torch

from seesaw.cuda.streams import Event
from seesaw.kvcache.batches import Batch
from seesaw.kvcache.copies import Job, copy_with_torch
from seesaw.kvcache.lane import Lane
from seesaw.kvcache.pool import KVCache
from seesaw.kvcache.tier import HostTier
from seesaw.layout import Range
from seesaw.layout.kv import KVCopy, PoolShape, TierShape
from tests.kvcache.fake_gpu import PATIENCE_S, FakeGpu
from tests.kvcache.kv_harness import random_bytes

TIER = TierShape(
    num_blocks=40, num_kv_heads=3, num_layers=4, block_tokens=8, head_dim=4, element_bytes=2
)
BLOCK_SIZE, POOL_BLOCKS = 2, 90
PART_BYTES = 2 * 4 * 2 * 8 * 4 * 2  # two heads, all layers

Reported = tuple[int, int, Exception | None]


class Setup:
    """A tier, two pools (all layers, some layers), jobs that share no block, and what they lead
    to."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.tier = HostTier.create(TIER)
        self.tier.tensor.copy_(random_bytes(TIER.nbytes, seed))
        self.pools = []
        for layers, heads in ((Range(0, 4), Range(0, 2)), (Range(1, 3), Range(0, 3))):
            shape = PoolShape(layers, heads, POOL_BLOCKS, BLOCK_SIZE, 4, 2)
            kv = KVCache.allocate(
                layers.size, POOL_BLOCKS, heads.size, BLOCK_SIZE, 4, torch.float16,
                torch.device("cpu"),
            )  # fmt: skip
            noise = random_bytes(kv.pool.nbytes, self.rng.randrange(2**32))
            kv.pool.copy_(noise.view(torch.float16).view(kv.pool.shape))
            blocks = self.rng.sample(range(POOL_BLOCKS), POOL_BLOCKS)
            self.pools.append((shape, kv, blocks))
        self._tier_blocks = self.rng.sample(range(TIER.num_blocks), TIER.num_blocks)

    def job(self, key: int) -> Job:
        shape, kv, blocks = self.rng.choice(self.pools)
        num_tokens = self.rng.choice([0, 1, 7, 8, 9, 16, 23])
        num_blocks, num_parts = -(-num_tokens // BLOCK_SIZE), -(-num_tokens // TIER.block_tokens)
        start = self.rng.randrange(2)
        copy = KVCopy(
            TIER, shape, Range(start, 2 if num_tokens % 2 else start + 1),
            [blocks.pop() for _ in range(num_blocks)],
            [self._tier_blocks.pop() for _ in range(num_parts)], num_tokens,
        )  # fmt: skip
        copy = copy if self.rng.random() < 0.9 else KVCopy(TIER, shape, Range(0, 0), [], [], 0)
        if copy.heads.size:
            copy.check()
        return Job(key, self.rng.random() < 0.5, copy, kv, self.tier)

    def content(self) -> list[torch.Tensor]:
        pools = [kv.pool.view(torch.uint8) for _, kv, _ in self.pools]
        return [memory.clone() for memory in (self.tier.tensor, *pools)]

    def compute(self, gpu: FakeGpu, job: Job) -> None:
        """Have the stream that computes write blocks of the job before it: what a store takes, and
        what a load replaces."""
        if job.copy.blocks:
            blocks, value = torch.tensor(job.copy.blocks), self.rng.random()
            gpu.compute.run(lambda: job.kv.pool.index_fill_(1, blocks, value))

    def expected(self, jobs: Iterable[Job]) -> list[torch.Tensor]:
        """Of `jobs` one after another; on return all is as it was."""
        before, state = self.content(), self.rng.getstate()
        for job in jobs:
            if job.copy.blocks:
                job.kv.pool.index_fill_(1, torch.tensor(job.copy.blocks), self.rng.random())
            copy_with_torch(job)
        after = self.content()
        self.rng.setstate(state)
        self.tier.tensor.copy_(before[0])
        for (_, kv, _), old in zip(self.pools, before[1:], strict=True):
            kv.pool.view(torch.uint8).copy_(old)
        return after


class Reports:
    """What `Report` was told, once each."""

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = jobs
        self.seen: list[Reported] = []
        self._all = threading.Event()

    def __call__(self, key: int, num_bytes: int, seconds: float, error: Exception | None) -> None:
        assert seconds >= 0
        self.seen.append((key, num_bytes, error))
        if len(self.seen) == len(self.jobs):
            self._all.set()

    def wait(self) -> None:
        if self.jobs:
            assert self._all.wait(PATIENCE_S), f"{len(self.seen)} of {len(self.jobs)} jobs ended"

    def assert_in_order(self) -> None:
        for store in (True, False):
            own = [job.key for job in self.jobs if job.store == store]
            seen = [key for key, _, _ in self.seen if key in own]
            assert seen == own[: len(seen)]
        assert len({key for key, _, _ in self.seen}) == len(self.seen)


class CheckedLane(Lane):
    """A lane that looks whether the slot is free, and how much is under way."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.under_way: list[tuple[int, Event, int]] = []
        self.most_bytes = 0
        self.num_begun = 0

    def begin(self, index: int, batch: Batch, after: Iterable[Event]) -> Event:
        self.under_way = [one for one in self.under_way if not one[1].query()]
        assert index not in [slot for slot, _, _ in self.under_way], "a slot that is in use"
        done = super().begin(index, batch, after)
        self.num_begun += 1
        self.under_way.append((index, done, batch.staged_bytes))
        self.most_bytes = max(self.most_bytes, sum(one[2] for one in self.under_way))
        return done


def lanes(copies: Any) -> list[CheckedLane]:
    return [worker._lane for worker in copies._workers.values()]


def make_job(setup: Setup, key: int, store: bool, num_tokens: int, start: int = 0) -> Job:
    """Of the first pool; blocks from `10 key` on, tier blocks from `start + 3 key` on."""
    shape, kv, _ = setup.pools[0]
    blocks = range(10 * key, 10 * key - (-num_tokens // BLOCK_SIZE))
    tier_blocks = range(start + 3 * key, start + 3 * key - (-num_tokens // TIER.block_tokens))
    copy = KVCopy(TIER, shape, Range(0, 2), blocks, tier_blocks, num_tokens)
    copy.check()
    return Job(key, store, copy, kv, setup.tier)


def eventually_begun(lane: CheckedLane, number: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while lane.num_begun < number:
        assert time.monotonic() < deadline, "it did not begin"
        time.sleep(0.001)
