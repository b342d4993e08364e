"""What ranks do in `test_rank_group.py`: functions of a `RankGroup`, run in processes."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import torch

from seesaw.distributed import RankGroup
from seesaw.layout import ParallelLayout
from seesaw.plan.workspace import MAX_HANDOVERS

SHAPES = ((0, 5), (1, 1), (3, 7), (130, 9), (1, 70_001), (3, 200_001))
"""The last two are beyond what shared memory and TCP add up at a time."""
PAYLOADS = (
    ((3, 7), torch.float32), ((0, 7), torch.float32), ((1, 1), torch.bfloat16),
    ((500, 333), torch.float32), ((2, 2), torch.int64),
) * 4  # fmt: skip


def values(seed: int, rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    return (torch.randn(shape, generator=generator) * 3).to(dtype)


def sum_and_gather(
    group: RankGroup, layouts: list[str], seed: int, dtype: torch.dtype
) -> dict[str, list[tuple[torch.Tensor, list[torch.Tensor]]]]:
    """Per layout the sums and gathers of all SHAPES within this rank's stage; twice through the
    layouts, so that groups made once are used again after others."""
    out = {}
    rng = random.Random(seed + group.rank)
    with torch.inference_mode():
        for name in layouts * 2:
            comm = group.tp_comm(ParallelLayout.parse(name))
            out[name] = []
            for shape in SHAPES:
                total = comm.all_reduce(values(seed, group.rank, shape, dtype))
                time.sleep(rng.choice((0, 0, 0, 0.001)))
                out[name].append((total, comm.all_gather(values(seed, group.rank, shape, dtype))))
    return out


def count_up(group: RankGroup, seed: int) -> list[int]:
    """Many sums without a pause, of sizes around a cache line; the wrong ones."""
    comm = group.tp_comm(ParallelLayout(tp=group.num_ranks))
    rng = random.Random(seed)
    ranks = group.num_ranks
    wrong = []
    for turn in range(500):
        x = torch.full((rng.randrange(1, 40),), float(turn + group.rank))
        expected = ranks * turn + ranks * (ranks - 1) / 2
        if bool((comm.all_reduce(x) != expected).any()):
            wrong.append(turn)
    return wrong


def leave_early(group: RankGroup) -> bool:
    """Rank 0 sends and leaves; the others still get it, and talk to each other."""
    if group.rank == 0:
        group.send(torch.arange(100_000), 1)
        return True
    if group.rank == 1:
        time.sleep(0.3)
        first = group.recv((100_000,), torch.int64, 0)
        group.send(first, 2)
        return True
    return bool((group.recv((100_000,), torch.int64, 1) == torch.arange(100_000)).all())


def place_in_stage(group: RankGroup, layout: str) -> tuple[int, int]:
    comm = group.tp_comm(ParallelLayout.parse(layout))
    assert group.tp_comm(ParallelLayout.parse(layout)) is comm
    return comm.rank, comm.size


def pass_on(group: RankGroup, seed: int) -> list[torch.Tensor]:
    """Payloads of rank 0 wander through all ranks, each adding its number."""
    received = []
    for number, (shape, dtype) in enumerate(PAYLOADS):
        if group.rank == 0:
            x = values(seed, number, shape[::-1], dtype).T  # not contiguous
        else:
            x = group.recv(shape, dtype, group.rank - 1) + group.rank
        if group.rank + 1 < group.num_ranks:
            group.send(x, group.rank + 1)
        received.append(x)
    return received


def run_ahead(group: RankGroup, folder: Path, size: int) -> bool:
    """Rank 0 sends one hand-over more than may be under way; rank 1 receives none before it has
    looked how far rank 0 came. Returns there whether rank 0 waited."""
    at_most, one_more = folder / "at_most", folder / "one_more"
    if group.rank == 0:
        for _ in range(MAX_HANDOVERS):
            group.send(torch.ones(size), 1)
        at_most.touch()
        group.send(torch.ones(size), 1)
        one_more.touch()
        return True
    while not at_most.exists():
        time.sleep(0.01)
    time.sleep(0.3)
    waited = not one_more.exists()
    for _ in range(MAX_HANDOVERS + 1):
        group.recv((size,), torch.float32, 0)
    return waited


def exchange(
    group: RankGroup, moves: list[list[tuple[int, int, int]]], layout: str
) -> list[tuple[int, torch.Tensor]]:
    """`moves`: rounds of (from, to, bytes). Between rounds the stage sums, on groups of its own."""
    comm, peers = group.tp_comm(ParallelLayout.parse(layout)), group.peer_exchange()
    received = []
    for round_index, pieces in enumerate(moves):
        sends, receives = [], []
        for index, (source, target, size) in enumerate(pieces):
            if source == group.rank:
                sends.append((target, content(round_index, index, size)))
            elif target == group.rank:
                receives.append((source, torch.zeros(size, dtype=torch.uint8)))
        peers.exchange(sends, receives)
        received += receives
        total = comm.all_reduce(torch.ones(3))
        assert total.tolist() == [comm.size] * 3
    return received


def content(round_index: int, index: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * round_index + index)
    return torch.randint(256, (size,), generator=generator).to(torch.uint8)


def count_threads(group: RankGroup) -> tuple[int, int]:
    """Threads and open files of this process while groups are there."""
    group.tp_comm(ParallelLayout(tp=group.num_ranks)).all_reduce(torch.ones(1))
    group.peer_exchange()
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


def wait_for_the_dead(group: RankGroup, how: str) -> str:
    """Rank 1 dies; the others ask it for something and return the error they get."""
    comm, peers = group.tp_comm(ParallelLayout(tp=group.num_ranks)), group.peer_exchange()
    comm.all_reduce(torch.ones(1))
    if group.rank == 1:
        os.kill(os.getpid(), 9)
    try:
        if how == "recv":
            group.recv((3,), torch.float32, 1)
        elif how == "all_reduce":
            comm.all_reduce(torch.ones(1000))
        else:
            peers.exchange([], [(1, torch.zeros(9, dtype=torch.uint8))])
    except RuntimeError as error:
        return str(error)
    return ""
