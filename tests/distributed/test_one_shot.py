"""Small sums by one kernel: what ranks agree on, and which calls go there. The kernel itself runs
in tests/csrc/test_cuda.py, and here on a GPU, which two ranks may share.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from seesaw.cuda.peer_sum import MAX_RANKS, MOST_BYTES, takes
from seesaw.distributed.one_shot import (
    Exchange,
    OneShotGroup,
    agreed_limit,
    exchange_over,
    map_peers,
)

PATIENCE_S = 60.0


def run_ranks(num_ranks: int, path: Path, work: Callable[[int, Exchange], Any]) -> list[Any]:
    """`work(rank, exchange)` on a thread for each rank, joined by a file as ranks are."""

    def run(rank: int) -> Any:
        store = dist.FileStore(str(path), num_ranks)
        return work(rank, exchange_over(store, "here", rank, range(num_ranks)))

    with ThreadPoolExecutor(num_ranks) as threads:
        return [
            one.result(PATIENCE_S) for one in [threads.submit(run, r) for r in range(num_ranks)]
        ]


class FakeMemory:
    """Of one rank; `all_open` are the handles that someone maps now."""

    def __init__(self, rank: int, all_open: list[str], can_open: bool) -> None:
        self.handle = f"memory of {rank}"
        self._all_open, self._can_open = all_open, can_open
        self._opened: list[str] = []
        self.closed = False

    def open(self, handles: Sequence[str], rank: int) -> list[int]:
        assert handles[rank] == self.handle
        for handle in handles:
            if handle != self.handle:
                if not self._can_open:
                    raise RuntimeError("peer access is not supported")
                self._opened.append(handle)
                self._all_open.append(handle)
        return [int(handle.split()[-1]) + 100 for handle in handles]

    def close_peers(self) -> None:
        while self._opened:
            self._all_open.remove(self._opened.pop())

    def close(self) -> None:
        assert self.handle not in self._all_open, "freed while it is mapped"
        self.closed = True


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("lacking", ["nothing", "memory", "access"])
def test_either_all_ranks_map_all_memory_or_none_does(
    num_ranks: int, lacking: str, tmp_path: Path
) -> None:
    bad = random.randrange(num_ranks)
    print(f"rank {bad} lacks {lacking}")
    all_open: list[str] = []
    memories: list[FakeMemory] = []

    def work(rank: int, exchange: Exchange) -> list[int] | None:
        def make() -> FakeMemory:
            if rank == bad and lacking == "memory":
                raise MemoryError("no cupy")
            memories.append(FakeMemory(rank, all_open, rank != bad or lacking != "access"))
            return memories[-1]

        found = map_peers(rank, num_ranks, exchange, make)
        return None if found is None else found[1]

    results = run_ranks(num_ranks, tmp_path / "store", work)
    if lacking == "nothing":
        assert results == [[rank + 100 for rank in range(num_ranks)]] * num_ranks
        assert len(all_open) == num_ranks * (num_ranks - 1)
        return
    assert results == [None] * num_ranks
    assert all_open == []
    assert all(memory.closed for memory in memories)


def test_more_ranks_than_the_kernel_knows_map_nothing(tmp_path: Path) -> None:
    def refuse(text: str) -> list[str]:
        raise AssertionError("nothing is to be said")

    assert map_peers(0, MAX_RANKS + 1, refuse, lambda: FakeMemory(0, [], True)) is None


def test_the_limit_is_that_of_the_slowest_rank(tmp_path: Path) -> None:
    times = [
        [(8, 1.0, 2.0), (16, 2.0, 3.0), (32, 4.0, 3.0)],
        [(8, 1.0, 2.0), (16, 3.0, 3.0), (32, 2.0, 3.0)],
        [(8, 1.0, 2.0), (16, 2.0, 3.0), (32, 2.0, 3.0)],
    ]
    limits = run_ranks(3, tmp_path / "a", lambda rank, told: agreed_limit(times[rank], told))
    assert limits == [8, 8, 8]
    slow = [(8, 2.0, 1.0)]
    assert run_ranks(2, tmp_path / "b", lambda rank, told: agreed_limit(slow, told)) == [0, 0]


class Named:
    """A `Comm` and a sum that say who they are."""

    size, rank, recordable = 2, 1, True

    def __init__(self, name: str) -> None:
        self.name = name

    def all_reduce(self, x: torch.Tensor) -> Any:
        return self.name

    def all_gather(self, x: torch.Tensor) -> Any:
        return self.name


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((8,), torch.bfloat16, "kernel"),
        ((4, 125), torch.float32, "kernel"),
        ((4, 126), torch.float32, "nccl"),  # above the limit
        ((3,), torch.float32, "nccl"),  # no whole pack
        ((0,), torch.float32, "nccl"),
        ((8,), torch.float64, "nccl"),
    ],
)
def test_shape_and_type_alone_say_where_a_sum_goes(
    shape: tuple[int, ...], dtype: torch.dtype, expected: str
) -> None:
    comm = OneShotGroup(Named("nccl"), Named("kernel"), 2000)
    assert (comm.size, comm.rank, comm.recordable) == (2, 1, True)
    assert comm.all_reduce(torch.zeros(shape, dtype=dtype)) == expected
    assert comm.all_gather(torch.zeros(shape, dtype=dtype)) == "nccl"


def test_no_more_than_a_slot_is_taken() -> None:
    assert takes(torch.zeros(MOST_BYTES // 2, dtype=torch.float16))
    assert not takes(torch.zeros(MOST_BYTES // 2 + 8, dtype=torch.float16))


def sum_on_gpu(rank: int, num_ranks: int, path: str, seed: int, results: Any) -> None:
    from seesaw.cuda.peer_memory import PeerMemory
    from seesaw.cuda.peer_sum import BUFFER_BYTES, PeerSum

    device = torch.device("cuda", rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    store = dist.FileStore(path, num_ranks)
    exchange = exchange_over(store, "here", rank, range(num_ranks))
    mapped = map_peers(rank, num_ranks, exchange, lambda: PeerMemory(BUFFER_BYTES, device))
    if mapped is None:
        results.put((rank, None))
        return
    memory, addresses = mapped
    small = PeerSum(device, rank, addresses)
    rng = random.Random(seed)
    sums = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16) * 4:
        count = rng.choice((8, 1000, 65536))
        x = values(seed, rank, count).to(dtype).to(device)
        sums.append(small.all_reduce(x).cpu())
        seed += 1
    results.put((rank, sums))
    torch.cuda.synchronize()
    memory.close_peers()
    exchange("closed")
    memory.close()


def values(seed: int, rank: int, count: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(1000 * seed + rank))


def test_ranks_on_gpus_get_the_same_sums(device: str, tmp_path: Path) -> None:
    if device != "cuda":
        pytest.skip("needs --device cuda")
    num_ranks, seed = 2, random.randrange(10**6)
    print(f"seed {seed}")
    context = mp.get_context("spawn")
    results: Any = context.Queue()
    arguments = (num_ranks, str(tmp_path / "store"), seed, results)
    ranks = [
        context.Process(target=sum_on_gpu, args=(rank, *arguments)) for rank in range(num_ranks)
    ]
    for rank in ranks:
        rank.start()
    got = dict(results.get(timeout=PATIENCE_S * 2) for _ in ranks)
    for rank in ranks:
        rank.join(PATIENCE_S)
    if got[0] is None:
        pytest.skip("these GPUs do not map each other's memory")
    for index, (one, other) in enumerate(zip(got[0], got[1], strict=True)):
        assert torch.equal(one, other)
        parts = [values(seed + index, rank, len(one)).to(one.dtype).float() for rank in (0, 1)]
        assert torch.equal(one, (parts[0] + parts[1]).to(one.dtype))


def test_ranks_of_an_exchange_wait_for_each_other(tmp_path: Path) -> None:
    late = threading.Event()

    def work(rank: int, exchange: Exchange) -> list[list[str]]:
        if rank == 1:
            assert late.wait(PATIENCE_S)
        first = exchange(f"a{rank}")
        return [first, exchange(f"b{rank}"), exchange("")]

    timer = threading.Timer(0.05, late.set)
    timer.start()
    assert run_ranks(2, tmp_path / "store", work) == [[["a0", "a1"], ["b0", "b1"], ["", ""]]] * 2
    timer.join()
