"""Copies of KV on streams, over a fake GPU that does the work of different streams in any order:
bytes, order of reports, slots, bounds, errors, ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seesaw.cuda.streams import Event
from seesaw.hostmem import shared
from seesaw.kvcache.batches import Batch
from seesaw.kvcache.copies import copy_with_torch
from seesaw.kvcache.lane import Lane
from seesaw.kvcache.ring import Ring
from tests.kvcache.copies_harness import (
    PART_BYTES,
    TIER,
    CheckedLane,
    Reports,
    Setup,
    eventually_begun,
    lanes,
    make_job,
)
from tests.kvcache.fake_gpu import PATIENCE_S, FakeEvent, FakeGpu, stream_copies


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
