"""Transfers in the background: what is reported when, what happens when something fails, and how it
ends."""

from __future__ import annotations

import builtins
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from seesaw.errors import EngineDeadError
from seesaw.kvcache.pool import KVCache
from seesaw.kvcache.tier import HostTier
from seesaw.kvcache.transfer import Engine, KVTransfers
from seesaw.layout import Range
from seesaw.layout.kv import TierShape
from tests.kvcache.engines import of_name
from tests.kvcache.kv_harness import Done, inode_of, mappings_of, random_bytes

CPU = torch.device("cpu")
LAYERS, HEADS = Range(0, 3), Range(0, 2)
NONE = Range(0, 0)
SHAPE = TierShape(
    num_blocks=8, num_kv_heads=2, num_layers=3, block_tokens=64, head_dim=4, element_bytes=4
)
PATIENCE_S = 30.0


@pytest.fixture(params=["cpp", "torch", "streams"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with of_name(request.param) as engine:
        yield engine


@pytest.fixture
def tier() -> Any:
    tier = HostTier.create(SHAPE)
    yield tier
    tier.close()


def make_kv(seed: int = 1, num_blocks: int = 40) -> KVCache:
    kv = KVCache.allocate(3, num_blocks, 2, 16, 4, torch.float32, CPU)
    kv.pool.copy_(random_bytes(kv.pool.nbytes, seed).view(torch.float32).view(kv.pool.shape))
    return kv


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.001)


def threads() -> set[str]:
    """Names of all threads of this process, those of C++ included."""
    return {
        f"{task.name} {(task / 'comm').read_text().strip()}"
        for task in Path("/proc/self/task").iterdir()
    }


def test_a_report_that_is_slow_to_be_taken_holds_up_no_copy(tier: HostTier, engine: Engine) -> None:
    go_on, done = threading.Event(), Done()

    def on_done(transfer_id: int, num_bytes: int, seconds: float) -> None:
        if transfer_id == 0:
            assert go_on.wait(PATIENCE_S)
        done(transfer_id, num_bytes, seconds)

    transfers = KVTransfers(tier, on_done, CPU, 2, engine=engine)
    kv = make_kv()
    for i in range(8):
        blocks = [4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3]
        transfers.store(i, kv, LAYERS, HEADS, HEADS, blocks, [i], 64)
    expected = kv.pool[:, :32].view(3, 8, 4, 2, 2, 16, 4).permute(1, 3, 0, 4, 2, 5, 6)
    expected = expected.contiguous().view(torch.uint8).flatten()
    eventually(lambda: torch.equal(tier.tensor, expected))
    assert not transfers.drain(timeout_s=0.01)
    go_on.set()
    assert transfers.drain(PATIENCE_S)
    assert sorted(report[0] for report in done.reports) == list(range(8))
    transfers.close()


def test_each_is_reported_once_when_its_bytes_are_there(tier: HostTier, engine: Engine) -> None:
    """Whatever the order: short ones overtake a long one in front of them."""
    seen: dict[int, bool] = {}
    big, small = make_kv(1), make_kv(2)
    loaded = {i: make_kv(10 + i, num_blocks=1) for i in range(6)}

    def on_done(transfer_id: int, num_bytes: int, seconds: float) -> None:
        assert transfer_id not in seen
        if transfer_id in loaded:
            seen[transfer_id] = torch.equal(as_bytes(loaded[transfer_id]), one_block)
        else:
            seen[transfer_id] = True

    transfers = KVTransfers(tier, on_done, CPU, 2, engine=engine)
    transfers.store(100, small, LAYERS, HEADS, HEADS, [7], [7], 16)
    transfers.drain()
    one_block = small.pool[:, 7:8].contiguous().view(torch.uint8)
    transfers.store(101, big, LAYERS, HEADS, HEADS, list(range(28)), list(range(7)), 28 * 16)
    for i, kv in loaded.items():
        transfers.load(i, kv, LAYERS, HEADS, HEADS, [0], [7], 5)
    assert transfers.drain(PATIENCE_S)
    assert seen == dict.fromkeys((100, 101, *loaded), True)
    transfers.close()


def test_parts_are_one_store_that_is_done_with_the_last(tier: HostTier, engine: Engine) -> None:
    done, kv = Done(), make_kv()
    transfers = KVTransfers(tier, done, CPU, 2, engine=engine)
    parts = [Range(layer, layer + 1) for layer in range(*LAYERS)]
    for part in parts[:-1]:
        transfers.store(5, kv, LAYERS, HEADS, HEADS, [3], [2], 16, part=part)
    assert transfers.drain(PATIENCE_S)
    assert not done.reports, "a layer is missing"
    assert transfers.stores.transfers == 0
    transfers.store(5, kv, LAYERS, HEADS, HEADS, [3], [2], 16, part=parts[-1])
    assert transfers.drain(PATIENCE_S)
    assert [report[:2] for report in done.reports] == [(5, kv.pool[:, 3].nbytes)]
    assert transfers.stores.transfers == 1
    past = Range(LAYERS.stop, LAYERS.stop + 1)
    with pytest.raises(ValueError, match="layers to copy"):
        transfers.store(6, kv, LAYERS, HEADS, HEADS, [3], [2], 16, part=past)
    transfers.close()


def as_bytes(kv: KVCache) -> torch.Tensor:
    return kv.pool.view(torch.uint8)


def test_who_owns_nothing_reports_no_bytes(tier: HostTier, engine: Engine) -> None:
    done, kv = Done(), make_kv()
    transfers = KVTransfers(tier, done, CPU, 1, engine=engine)
    transfers.store(3, kv, LAYERS, NONE, HEADS, [0, 1], [5], 20)
    transfers.load(4, kv, LAYERS, HEADS, HEADS, [], [], 0)
    transfers.drain()
    assert sorted(report[:2] for report in done.reports) == [(3, 0), (4, 0)]
    assert not tier.tensor.any()
    transfers.close()


def test_heads_from_the_middle_of_the_pool(tier: HostTier, engine: Engine) -> None:
    transfers = KVTransfers(tier, Done(), CPU, 1, engine=engine)
    kv, other = make_kv(1), make_kv(2)
    expected = other.pool.clone()
    expected[:, 9, 1] = kv.pool[:, 4, 1]
    transfers.store(1, kv, LAYERS, Range(1, 2), HEADS, [4], [3], 16)
    transfers.drain()
    transfers.load(2, other, LAYERS, Range(1, 2), HEADS, [9], [3], 16)
    transfers.drain()
    assert torch.equal(as_bytes(other), expected.view(torch.uint8))
    assert not tier.tensor.view(8, 2, -1)[:, 0].any()
    transfers.close()


@pytest.mark.parametrize(
    ("layers", "heads", "held", "blocks", "tier_blocks", "num_tokens", "message"),
    [
        (LAYERS, HEADS, HEADS, [40], [0], 1, "blocks: got 40"),
        (LAYERS, HEADS, HEADS, [0], [8], 1, "tier blocks: got 8"),
        (LAYERS, HEADS, HEADS, [0], [0], 17, "blocks: got 1, expected 2"),
        (Range(0, 2), HEADS, HEADS, [0], [0], 1, "the pool has 3 layers"),
        (Range(1, 4), HEADS, HEADS, [0], [0], 1, "layers of the pool"),
        (LAYERS, HEADS, Range(1, 3), [0], [0], 1, "KV heads of the pool"),
        (LAYERS, Range(0, 1), Range(0, 1), [0], [0], 1, "2 KV heads"),
        (LAYERS, Range(1, 3), HEADS, [0], [0], 1, "KV heads to copy"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_byte_moves(
    tier: HostTier, engine: Engine, layers: Range, heads: Range, held: Range, blocks: list[int],
    tier_blocks: list[int], num_tokens: int, message: str,
) -> None:  # fmt: skip
    done, kv = Done(), make_kv()
    before = as_bytes(kv).clone()
    transfers = KVTransfers(tier, done, CPU, 1, engine=engine)
    for begin in (transfers.store, transfers.load):
        with pytest.raises(ValueError, match=message):
            begin(1, kv, layers, heads, held, blocks, tier_blocks, num_tokens)
    transfers.drain()
    assert done.reports == []
    assert not tier.tensor.any()
    assert torch.equal(as_bytes(kv), before)
    transfers.store(2, kv, LAYERS, HEADS, HEADS, [0], [0], 1)  # goes on
    transfers.drain()
    assert len(done.reports) == 1
    transfers.close()


def test_a_pool_with_gaps_or_of_another_type_is_refused(tier: HostTier, engine: Engine) -> None:
    pool = make_kv().pool
    bad = {
        "contiguous": pool[:, ::2],
        "element_bytes: got 2, expected 4": pool.to(torch.bfloat16),
        "the pool is on meta": pool.to("meta"),
    }
    transfers = KVTransfers(tier, Done(), CPU, 1, engine=engine)
    for message, tensor in bad.items():
        with pytest.raises(ValueError, match=message):
            transfers.store(1, KVCache(tensor), LAYERS, HEADS, HEADS, [0], [0], 1)
    transfers.close()


def test_an_error_in_on_done_reaches_the_caller(tier: HostTier, engine: Engine) -> None:
    errors: list[EngineDeadError] = []

    def on_done(transfer_id: int, num_bytes: int, seconds: float) -> None:
        raise OSError("the socket is gone")

    transfers = KVTransfers(tier, on_done, CPU, 1, engine=engine, on_error=errors.append)
    kv = make_kv()
    transfers.load(7, kv, LAYERS, HEADS, HEADS, [0], [0], 1)
    with pytest.raises(EngineDeadError, match=r"load 7 of KV failed.*the socket is gone"):
        transfers.drain()
    eventually(lambda: len(errors) == 1)
    assert isinstance(errors[0].__cause__, OSError)
    with pytest.raises(EngineDeadError, match="load 7"):
        transfers.store(8, kv, LAYERS, HEADS, HEADS, [0], [0], 1)
    transfers.close()


def test_an_error_in_a_copy_reaches_the_caller() -> None:
    """The tier is closed too early, which a torch thread finds out while it copies."""
    tier, done, errors = HostTier.create(SHAPE), Done(), list[EngineDeadError]()
    transfers = KVTransfers(tier, done, CPU, 1, engine="torch", on_error=errors.append)
    tier.close()
    transfers.store(9, make_kv(), LAYERS, HEADS, HEADS, [0], [0], 1)
    with pytest.raises(
        EngineDeadError, match=r"store 9 of KV failed.*the host tier of .* is closed"
    ):
        transfers.drain()
    eventually(lambda: len(errors) == 1)
    assert done.reports == []
    transfers.close()


def test_a_tier_closed_too_early_is_an_error_at_once_in_cpp() -> None:
    pytest.importorskip("seesaw._cpu")
    tier = HostTier.create(SHAPE)
    transfers = KVTransfers(tier, Done(), CPU, 1, engine="cpp")
    tier.close()
    with pytest.raises(ValueError, match=r"the host tier of .* is closed"):
        transfers.store(9, make_kv(), LAYERS, HEADS, HEADS, [0], [0], 1)
    assert transfers.drain(PATIENCE_S)  # it is not under way
    transfers.close()


def test_close_with_transfers_in_flight_leaves_nothing(engine: Engine) -> None:
    files, before = set(os.listdir("/proc/self/fd")), threads()
    tier, done = HostTier.create(SHAPE), Done()
    inode = inode_of(tier)
    transfers = KVTransfers(tier, done, CPU, 3, engine=engine)
    kv = make_kv()
    for i in range(500):
        transfers.load(i, kv, LAYERS, HEADS, HEADS, list(range(30)), list(range(8)), 480)
    transfers.close()
    reports, pool = len(done.reports), as_bytes(kv).clone()
    tier.tensor.fill_(9)
    tier.close()
    transfers.close()
    with pytest.raises(ValueError, match="closed"):
        transfers.load(1, kv, LAYERS, HEADS, HEADS, [0], [0], 1)
    with pytest.raises(ValueError, match="closed"):
        transfers.drain()
    assert len(done.reports) == reports <= 500
    assert torch.equal(as_bytes(kv), pool)
    eventually(lambda: threads() <= before)
    assert set(os.listdir("/proc/self/fd")) <= files
    assert mappings_of(inode) == 0


def test_a_drain_does_not_outwait_close(tier: HostTier, engine: Engine) -> None:
    reported, go_on = threading.Event(), threading.Event()

    def on_done(transfer_id: int, num_bytes: int, seconds: float) -> None:
        reported.set()
        assert go_on.wait(PATIENCE_S)

    transfers = KVTransfers(tier, on_done, CPU, 1, engine=engine)
    kv = make_kv()
    for i in range(3):
        transfers.store(i, kv, LAYERS, HEADS, HEADS, [0], [i], 1)

    def drain() -> None:
        with contextlib.suppress(ValueError):  # unless all three were done before it
            transfers.drain()

    waiter = threading.Thread(target=drain)
    waiter.start()
    assert reported.wait(PATIENCE_S)
    closer = threading.Thread(target=transfers.close)
    closer.start()
    go_on.set()
    closer.join(PATIENCE_S)
    waiter.join(PATIENCE_S)
    assert not closer.is_alive()
    assert not waiter.is_alive()


def test_without_the_cpp_part_python_threads_copy(
    tier: HostTier, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("seesaw._cpu")
    real = builtins.__import__

    def without_cpp(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "seesaw._cpu":
            raise ImportError("No module named 'seesaw._cpu'")
        return real(name, *args, **kwargs)

    built = KVTransfers(tier, Done(), CPU, 1)
    assert built.engine == "C++ threads"
    built.close()
    monkeypatch.setattr(builtins, "__import__", without_cpp)
    done = Done()
    transfers = KVTransfers(tier, done, CPU, 1)
    assert transfers.engine == "Python threads"
    transfers.store(1, make_kv(), LAYERS, HEADS, HEADS, [0], [0], 1)
    transfers.drain()
    assert len(done.reports) == 1
    transfers.close()
    with pytest.raises(ImportError):
        KVTransfers(tier, Done(), CPU, 1, engine="cpp")


def test_bad_settings_are_refused(tier: HostTier) -> None:
    with pytest.raises(ValueError, match="num_threads=0"):
        KVTransfers(tier, Done(), CPU, 0)
    for engine in ("cpp", "torch"):
        with pytest.raises(ValueError, match="CPU only"):
            KVTransfers(tier, Done(), torch.device("cuda"), 1, engine=engine)
