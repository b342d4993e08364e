"""Copies of KV on streams, over a fake GPU that does the work of different streams in any order:
bytes, order of reports, slots, bounds, errors, ends.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seesaw.cuda.streams import Event
from seesaw.hostmem import shared
from seesaw.kvcache.batches import Batch, Batches, block_bytes, part_bytes
from seesaw.kvcache.copies import Job, copy_with_torch
from seesaw.kvcache.cuda_copies import Times, crossover_bytes
from seesaw.kvcache.lane import Lane
from seesaw.kvcache.pool import KVCache
from seesaw.kvcache.ring import Ring
from seesaw.kvcache.tier import HostTier
from seesaw.layout import Range
from seesaw.layout.kv import KVCopy, PoolShape, TierShape
from tests.kvcache.fake_gpu import PATIENCE_S, FakeEvent, FakeGpu, stream_copies
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


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    num_jobs=st.integers(0, 10),
    num_slots=st.integers(1, 3),
    batch_bytes=st.sampled_from([1, PART_BYTES, 3 * PART_BYTES, 1 << 20]),
    crossover=st.sampled_from([0, 65, 257, 1 << 20]),
)
def test_bytes_order_slots_and_bounds(
    seed: int, num_jobs: int, num_slots: int, batch_bytes: int, crossover: int
) -> None:
    setup, gpu = Setup(seed), FakeGpu(seed)
    jobs = [setup.job(key) for key in range(num_jobs)]
    expected = setup.expected(jobs)
    reports = Reports(jobs)
    copies = stream_copies(
        gpu, reports, num_slots=num_slots, batch_bytes=batch_bytes, crossover_bytes=crossover,
        lane=CheckedLane,
    )  # fmt: skip
    for job in jobs:
        setup.compute(gpu, job)
        copies.submit(job)
    reports.wait()
    reports.assert_in_order()
    assert sorted(reports.seen) == [(job.key, job.copy.num_bytes, None) for job in jobs]
    for got, wanted in zip(setup.content(), expected, strict=True):
        assert torch.equal(got, wanted)
    for lane in lanes(copies):
        assert lane.most_bytes <= num_slots * max(batch_bytes, PART_BYTES)
    copies.close()
    gpu.close()
    setup.tier.close()


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), num_jobs=st.integers(1, 10), fail_at=st.integers(1, 30))
def test_errors_of_the_device_reach_every_job_they_touch(
    seed: int, num_jobs: int, fail_at: int
) -> None:
    setup, gpu = Setup(seed), FakeGpu(seed, fail_at)
    jobs = [setup.job(key) for key in range(num_jobs)]
    reports = Reports(jobs)
    copies = stream_copies(gpu, reports)
    for job in jobs:
        copies.submit(job)
    reports.wait()
    reports.assert_in_order()
    for store in (True, False):
        errors = [error for key, _, error in reports.seen if jobs[key].store == store]
        good = errors.index(next(filter(None, errors))) if any(errors) else len(errors)
        assert not any(errors[:good])
        assert all("the device has failed" in str(error) for error in errors[good:])
    # What was reported as done is done.
    for key, num_bytes, error in reports.seen:
        if error is None:
            assert num_bytes == jobs[key].copy.num_bytes
            before = setup.content()
            copy_with_torch(jobs[key])
            assert all(map(torch.equal, before, setup.content()))
    copies.close()
    gpu.close()
    setup.tier.close()


class FailingLane(Lane):
    def begin(self, index: int, batch: Batch, after: Iterable[Event]) -> Event:
        if 1 in batch.shares:
            raise OSError("no such stream")
        return super().begin(index, batch, after)


def test_an_error_at_the_begin_of_a_batch_ends_the_direction() -> None:
    setup, gpu = Setup(1), FakeGpu(1)
    first = make_job(setup, 0, True, 8)
    jobs = [first, make_job(setup, 1, True, 9), make_job(setup, 2, True, 8)]
    reports = Reports(jobs)
    copies = stream_copies(gpu, reports, batch_bytes=1, lane=FailingLane)
    for job in jobs:
        copies.submit(job)
    reports.wait()
    assert [(key, num_bytes) for key, num_bytes, _ in reports.seen] == [
        (0, first.copy.num_bytes), (1, 0), (2, 0),
    ]  # fmt: skip
    assert [str(error) for _, _, error in reports.seen] == ["None", *["no such stream"] * 2]
    copies.close()
    gpu.close()
    setup.tier.close()


def make_job(setup: Setup, key: int, store: bool, num_tokens: int, start: int = 0) -> Job:
    """Of the first pool; blocks from `10 key` on, tier blocks from `start + 3 key` on."""
    shape, kv, _ = setup.pools[0]
    blocks = range(10 * key, 10 * key - (-num_tokens // BLOCK_SIZE))
    tier_blocks = range(start + 3 * key, start + 3 * key - (-num_tokens // TIER.block_tokens))
    copy = KVCopy(TIER, shape, Range(0, 2), blocks, tier_blocks, num_tokens)
    copy.check()
    return Job(key, store, copy, kv, setup.tier)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), wait_s=st.sampled_from([0.0, 1e-4, 2e-3]))
def test_after_close_nothing_is_copied_or_reported(seed: int, wait_s: float) -> None:
    setup, gpu = Setup(seed), FakeGpu(seed)
    jobs = [setup.job(key) for key in range(8)]
    reports = Reports(jobs)
    copies = stream_copies(gpu, reports)
    for job in jobs:
        copies.submit(job)
    time.sleep(wait_s)
    copies.close()
    seen, content = list(reports.seen), setup.content()
    reports.assert_in_order()
    left = [stream for stream in gpu.streams if stream.work and stream is not gpu.compute]
    assert not left, "work was left on a stream"
    assert not any(error for _, _, error in seen)
    assert reports.seen == seen
    assert all(map(torch.equal, content, setup.content()))
    gpu.close()
    setup.tier.close()


def test_what_ends_while_it_is_closed_is_not_reported() -> None:
    setup, gpu = Setup(7), FakeGpu(7)
    jobs = [make_job(setup, key, True, 8) for key in range(3)]
    reports = Reports(jobs)
    copies = stream_copies(gpu, reports, lane=CheckedLane)
    gpu.hold(True)
    for job in jobs:
        copies.submit(job)
    eventually_begun(lanes(copies)[0], 1)
    closer = threading.Thread(target=copies.close)
    closer.start()
    time.sleep(0.02)
    assert closer.is_alive(), "it leaves work on the GPU"
    gpu.hold(False)
    closer.join(PATIENCE_S)
    assert not closer.is_alive()
    assert reports.seen == []
    gpu.close()
    setup.tier.close()


def test_no_more_is_begun_than_there_are_slots() -> None:
    setup, gpu = Setup(2), FakeGpu(2)
    jobs = [make_job(setup, key, True, 8) for key in range(9)]
    reports = Reports(jobs)
    copies = stream_copies(gpu, reports, num_slots=2, batch_bytes=PART_BYTES, lane=CheckedLane)
    gpu.hold(True)
    for job in jobs:
        copies.submit(job)
    store = lanes(copies)[0]
    eventually_begun(store, 2)
    time.sleep(0.02)
    assert store.num_begun == 2
    assert reports.seen == []
    gpu.hold(False)
    reports.wait()
    assert store.num_begun == 9
    copies.close()
    gpu.close()
    setup.tier.close()


def test_a_job_begins_after_its_own_event_where_it_has_one() -> None:
    """Not after that of who submits it."""
    setup, gpu = Setup(2), FakeGpu(2)
    own = FakeEvent(gpu)
    job = replace(make_job(setup, 0, True, 8), ready=own)
    reports = Reports([job])
    copies = stream_copies(gpu, reports, lane=CheckedLane)
    copies.submit(job)
    eventually_begun(lanes(copies)[0], 1)
    time.sleep(0.02)
    assert reports.seen == []
    with gpu.changed:
        own.done = True
        gpu.changed.notify_all()
    reports.wait()
    copies.close()
    gpu.close()
    setup.tier.close()


def eventually_begun(lane: CheckedLane, number: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while lane.num_begun < number:
        assert time.monotonic() < deadline, "it did not begin"
        time.sleep(0.001)


def test_one_batch_takes_parts_of_many_requests() -> None:
    setup = Setup(3)
    batches = Batches(most_bytes=1 << 20, crossover_bytes=0)
    jobs = [make_job(setup, key, True, 8) for key in range(6)]
    for job in jobs:
        batches.add(job)
    batch = batches.next()
    assert batch.ends == batch.sources == jobs
    assert batch.blocks == [block for job in jobs for block in job.copy.blocks]
    assert not batches
    setup.tier.close()


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32), most=st.integers(1, 5000), crossover=st.integers(0, 1000))
def test_batches_lose_and_repeat_nothing(seed: int, most: int, crossover: int) -> None:
    setup = Setup(seed)
    jobs = [setup.job(key) for key in range(setup.rng.randrange(9))]
    batches = Batches(most, crossover)
    for job in jobs:
        batches.add(job)
    copied: dict[int, list[tuple[int, int]]] = {job.key: [] for job in jobs}
    ends: list[Job] = []
    while batches:
        batch = batches.next()
        assert batch.sources or batch.ends
        assert batch.first is None or len(batch.parts) == 1 or batch.staged_bytes <= most
        blocks = iter(batch.blocks)
        pairs = [
            (next(blocks), tier_block) for tier_block, count in batch.parts for _ in range(count)
        ]
        for job in batch.sources:
            share = batch.shares[job.key]
            copied[job.key] += pairs[:share]
            del pairs[:share]
        assert not pairs
        if batch.first is not None:
            lengths = {run.nbytes for run in batch.tier_runs()}
            assert all((length < crossover) == batch.by_kernel for length in lengths)
            total = sum(run.nbytes for run in batch.tier_runs())
            assert total == len(batch.blocks) * block_bytes(batch.first.copy)
        ends += batch.ends
    assert ends == jobs
    for job in jobs:
        copy = job.copy
        per_part = TIER.block_tokens // BLOCK_SIZE
        wanted = [(b, copy.tier_blocks[i // per_part]) for i, b in enumerate(copy.blocks)]
        assert copied[job.key] == (wanted if copy.num_bytes else [])
    setup.tier.close()


def test_parts_are_as_large_as_they_say() -> None:
    setup = Setup(4)
    assert part_bytes(make_job(setup, 0, True, 8).copy) == PART_BYTES
    setup.tier.close()


def test_a_ring_hands_out_no_slot_before_its_event() -> None:
    gpu = FakeGpu(5)
    ring = Ring(2)
    gpu.hold(True)
    assert [ring.take(), ring.take()] == [0, 1]
    for slot in (0, 1):
        ring.give(slot, gpu.now())
    waiter = threading.Thread(target=ring.take)
    waiter.start()
    waiter.join(0.02)
    assert waiter.is_alive()
    gpu.hold(False)
    waiter.join(PATIENCE_S)
    assert not waiter.is_alive()
    gpu.close()


class SlowCuda:
    """Registers pieces as it is let."""

    pieces = threading.Semaphore(0)

    def __init__(self, device: torch.device) -> None: ...

    def register(self, address: int, nbytes: int) -> int:
        return 0 if self.pieces.acquire(timeout=PATIENCE_S) else 1

    def unregister(self, address: int) -> int:
        return 0


def test_transfers_wait_for_those_pieces_of_the_tier_that_they_touch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared, "CudaHostMemory", SlowCuda)
    SlowCuda.pieces = threading.Semaphore(1)
    setup, gpu = Setup(6), FakeGpu(6)
    setup.tier.begin_page_lock(torch.device("cpu"), 10 * TIER.block_bytes)
    jobs = [make_job(setup, 0, True, 20), make_job(setup, 3, True, 16, start=0)]
    reports = Reports(jobs)
    copies = stream_copies(gpu, reports, batch_bytes=1, lane=CheckedLane)
    store = lanes(copies)[0]
    copies.submit(jobs[0])  # tier blocks 0 to 2
    eventually_begun(store, 3)
    copies.submit(jobs[1])  # 9 and 10
    eventually_begun(store, 4)
    time.sleep(0.02)
    assert store.num_begun == 4
    SlowCuda.pieces.release()
    reports.wait()
    copies.close()
    waiting = stream_copies(gpu, Reports([]))
    waiting.submit(make_job(setup, 8, True, 8, start=10))  # tier block 34
    time.sleep(0.01)
    waiting.close()  # does not outwait it
    SlowCuda.pieces.release(10)
    setup.tier.close()
    gpu.close()


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
