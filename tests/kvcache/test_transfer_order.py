"""Loads that come after stores, and steps that wait for copies: in order however slow copies are,
and never waiting for what will not come."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from seesaw.cuda.streams import Event
from seesaw.cuda.thread_stream import ThreadEvent
from seesaw.errors import EngineDeadError
from seesaw.kvcache import copies
from seesaw.kvcache.copies import Job, Report, copy_with_torch
from seesaw.kvcache.pool import KVCache
from seesaw.kvcache.tier import HostTier
from seesaw.kvcache.transfer import Engine, KVTransfers
from seesaw.layout import Range
from tests.kvcache.engines import of_name
from tests.kvcache.kv_harness import Done, random_bytes
from tests.kvcache.test_transfer import CPU, HEADS, LAYERS, PATIENCE_S, SHAPE, eventually

EXTRA = 1000  # ids of loads, behind those of the stores that they come after


@pytest.fixture
def tier() -> Iterator[HostTier]:
    tier = HostTier.create(SHAPE)
    yield tier
    tier.close()


@pytest.fixture(params=["cpp", "torch", "streams"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with of_name(request.param) as engine:
        yield engine


def make_kv(num_blocks: int = 8) -> KVCache:
    kv = KVCache.allocate(3, num_blocks, 2, 16, 4, torch.float32, CPU)
    noise = random_bytes(kv.pool.nbytes, random.randrange(2**32))
    kv.pool.copy_(noise.view(torch.float32).view(kv.pool.shape))
    return kv


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit for bit: there are NaNs."""
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


class Slowly:
    """An engine that copies when it is told to."""

    name = "on demand"
    now_event: Event | None = None

    def __init__(self, report: Report) -> None:
        self.report = report
        self.jobs: dict[int, Job] = {}
        self.refused: Exception | None = None

    def now(self) -> Event | None:
        return self.now_event

    def submit(self, job: Job) -> None:
        if self.refused is not None:
            raise self.refused
        self.jobs[job.key] = job

    def finish(self, error: Exception | None = None) -> None:
        """The oldest."""
        job = self.jobs.pop(min(self.jobs))
        self.report(job.key, 0 if error else copy_with_torch(job), 0.1, error)

    def close(self) -> None:
        self.jobs.clear()


class Case:
    def __init__(self, tier: HostTier) -> None:
        self.done, self.errors = Done(), list[EngineDeadError]()
        self.kv, self.other = make_kv(), make_kv()
        self.engine: Slowly
        self.transfers = KVTransfers(
            tier, self.done, CPU, 1, engine=self._make, on_error=self.errors.append
        )

    def _make(self, report: Report) -> Slowly:
        self.engine = Slowly(report)
        return self.engine

    def store(self, number: int, part: Range | None = None) -> None:
        blocks = [number % 8]
        self.transfers.store(
            number, self.kv, LAYERS, HEADS, HEADS, blocks, [number % 8], 16, part=part
        )

    def load(self, number: int, after: tuple[int, ...]) -> None:
        blocks = [number % 8]
        self.transfers.load(
            EXTRA + number, self.other, LAYERS, HEADS, HEADS, blocks, [number % 8], 16, after
        )

    def waiting(self, *transfer_ids: int) -> Waiter:
        return Waiter(lambda: self.transfers.wait(transfer_ids))


class Waiter:
    """Calls in a thread; `error` is what it raised."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.error: BaseException | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._call()
        except Exception as error:
            self.error = error

    @property
    def waits(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        self._thread.join(PATIENCE_S)
        assert not self.waits, "it waits for what will not come"


def test_a_load_begins_when_all_parts_of_the_stores_before_it_are_done(tier: HostTier) -> None:
    case = Case(tier)
    for layer in range(*LAYERS):
        case.store(1, Range(layer, layer + 1))
    case.store(2)
    case.load(1, after=(1, 2, 77))  # 77 was done long ago, or is of other ranks only
    loading, storing = case.waiting(EXTRA + 1), case.waiting(1)
    for left in (3, 2, 1, 0):
        assert [job.store for job in case.engine.jobs.values()] == [True] * (left + 1)
        assert loading.waits
        assert storing.waits or left == 0
        case.engine.finish()
    storing.join()
    assert [job.store for job in case.engine.jobs.values()] == [False]
    assert loading.waits
    assert case.transfers.num_under_way == 1
    case.engine.finish()
    loading.join()
    assert loading.error is None
    assert same(case.other.pool[:, 1], case.kv.pool[:, 1])
    assert [report[0] for report in case.done.reports] == [1, 2, EXTRA + 1]
    case.transfers.wait([1, 2, EXTRA + 1, 77])  # nothing to wait for
    case.transfers.close()


def test_a_load_that_is_held_back_waits_for_what_was_computed_when_it_was_asked_for(
    tier: HostTier,
) -> None:
    """On a GPU steps may be under way that write its blocks; the thread that begins it, when the
    stores before it are done, has another current stream."""
    case = Case(tier)
    case.store(1)
    asked = case.engine.now_event = ThreadEvent()
    case.load(1, after=(1,))
    case.engine.now_event = ThreadEvent.over()
    case.engine.finish()
    (job,) = case.engine.jobs.values()
    assert job.ready is asked
    case.engine.finish()
    case.transfers.close()


def test_who_waits_hears_of_a_copy_that_failed_and_nothing_is_begun_behind_it(
    tier: HostTier,
) -> None:
    case = Case(tier)
    case.store(1)
    case.load(1, after=(1,))
    waiter = case.waiting(EXTRA + 1)
    case.engine.finish(OSError("the bus is gone"))
    waiter.join()
    assert isinstance(waiter.error, EngineDeadError)
    assert "store 1 of KV failed" in str(waiter.error)
    assert not case.engine.jobs
    assert not case.done.reports
    assert len(case.errors) == 1
    case.transfers.close()


def test_a_load_that_cannot_be_begun_behind_its_store_is_told(tier: HostTier) -> None:
    case = Case(tier)
    case.store(1)
    case.load(1, after=(1,))
    waiter = case.waiting(EXTRA + 1)
    case.engine.refused = ValueError("the tier is closed")
    case.engine.finish()
    waiter.join()
    assert isinstance(waiter.error, EngineDeadError)
    assert "load 1001 of KV failed" in str(waiter.error)
    assert [report[0] for report in case.done.reports] == [1]
    assert case.errors == [waiter.error]
    case.transfers.close()


def test_who_waits_hears_of_the_end(tier: HostTier) -> None:
    case = Case(tier)
    case.store(1)
    case.load(1, after=(1,))
    waiter = case.waiting(EXTRA + 1)
    case.transfers.close()
    waiter.join()
    assert isinstance(waiter.error, ValueError)
    assert "closed" in str(waiter.error)
    assert case.transfers.num_under_way == 0


def test_chains_of_slow_copies_come_out_in_order(
    tier: HostTier, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the engine has room for one copy at a time, and what was held back is begun by
    the thread that reports ends."""
    monkeypatch.setattr(copies, "MAX_JOBS", 1)
    real = copies.copy_with_torch
    monkeypatch.setattr(copies, "copy_with_torch", lambda job: (time.sleep(1e-3), real(job))[1])
    done, kv, others = Done(), make_kv(), [make_kv() for _ in range(3)]
    transfers = KVTransfers(tier, done, CPU, 2, engine=engine)
    numbers = iter(range(10**6))
    for _ in range(8):
        kv.pool.copy_(make_kv().pool)
        loads = []
        for block in range(8):
            store = next(numbers)
            transfers.store(store, kv, LAYERS, HEADS, HEADS, [block], [block], 16)
            for other in others:
                loads.append(next(numbers))
                transfers.load(
                    loads[-1], other, LAYERS, HEADS, HEADS, [7 - block], [block], 16, (store,)
                )
        transfers.wait(loads)
        for other in others:
            assert same(other.pool.flip(1), kv.pool)
    assert transfers.drain(PATIENCE_S)
    assert sorted(report[0] for report in done.reports) == list(range(next(numbers)))
    transfers.close()


def test_close_while_loads_are_held_back(tier: HostTier, engine: Engine) -> None:
    """The thread that begins them must not trip over it."""
    for _ in range(20):
        done, kv, other = Done(), make_kv(), make_kv()
        transfers = KVTransfers(tier, done, CPU, 2, engine=engine)
        for number in range(30):
            block = [number % 8]
            transfers.store(number, kv, LAYERS, HEADS, HEADS, block, block, 16)
            transfers.load(EXTRA + number, other, LAYERS, HEADS, HEADS, block, block, 16, (number,))
        eventually(lambda: bool(done.reports))  # noqa: B023
        transfers.close()
        assert transfers.num_under_way == 0
