"""Ranks as processes, over shared memory, TCP and gloo: sums, hand-over, exchange, groups of every
layout, dead peers."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from seesaw.distributed import Kind
from seesaw.layout import ParallelLayout
from tests.distributed import tasks
from tests.distributed.pool import RankPool

LAYOUTS = {2: ["tp2", "pp2"], 3: ["tp3", "pp3"], 4: ["tp2-pp2", "tp4", "pp4"]}


KINDS: tuple[Kind, ...] = ("shm", "tcp", "gloo")


@pytest.fixture(scope="module")
def processes() -> Iterator[RankPool]:
    pool = RankPool(4)
    yield pool
    pool.close()


@pytest.fixture(params=KINDS)
def pool(request: pytest.FixtureRequest, processes: RankPool) -> RankPool:
    processes.kind = built(request.param)
    return processes


def built(kind: Kind) -> Kind:
    if kind != "gloo":
        pytest.importorskip("seesaw._cpu")
    return kind


def fresh_seed() -> int:
    seed = random.randrange(10**6)
    print(f"seed={seed}")  # shown by pytest where a test fails
    return seed


def stage_of(layout: str, rank: int) -> list[int]:
    """Ranks of the rank's stage, counted by hand: neighbours."""
    tp = ParallelLayout.parse(layout).tp
    return list(range(rank // tp * tp, rank // tp * tp + tp))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_ranks", LAYOUTS)
def test_sums_and_gathers_of_every_layout(
    pool: RankPool, num_ranks: int, dtype: torch.dtype
) -> None:
    seed, layouts = fresh_seed(), LAYOUTS[num_ranks]
    results = pool.run(tasks.sum_and_gather, num_ranks, layouts, seed, dtype)
    for layout in layouts:
        for rank, result in enumerate(results):
            stage = stage_of(layout, rank)
            for shape, (total, parts), at_first in zip(
                tasks.SHAPES, result[layout], results[stage[0]][layout], strict=True
            ):
                inputs = [tasks.values(seed, member, shape, dtype) for member in stage]
                assert all(map(torch.equal, parts, inputs))
                assert len(parts) == len(inputs)
                assert total.dtype == dtype
                assert torch.equal(total, at_first[0]), "sums of a stage differ in bits"
                if pool.kind != "gloo":
                    in_order = sum(inputs[1:], inputs[0].float())
                    assert torch.equal(total, in_order.to(dtype))
                    continue
                exact = torch.stack(inputs).double().sum(0)
                # each addition may round once
                most = torch.stack(inputs).double().abs().sum(0) * torch.finfo(dtype).eps
                assert bool(((total.double() - exact).abs() <= most * (len(stage) - 1)).all())


def test_neighbours_share_a_stage(pool: RankPool) -> None:
    places = pool.run(tasks.place_in_stage, 4, "tp2-pp2")
    assert places == [(0, 2), (1, 2), (0, 2), (1, 2)]
    assert pool.run(tasks.place_in_stage, 3, "pp3") == [(0, 1)] * 3


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_sums_in_quick_succession(pool: RankPool, num_ranks: int) -> None:
    assert pool.run(tasks.count_up, num_ranks, fresh_seed()) == [[]] * num_ranks


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_hidden_states_arrive_in_order(pool: RankPool, num_ranks: int) -> None:
    seed = fresh_seed()
    results = pool.run(tasks.pass_on, num_ranks, seed)
    for number, (shape, dtype) in enumerate(tasks.PAYLOADS):
        expected = tasks.values(seed, number, shape[::-1], dtype).T
        for rank in range(num_ranks):
            expected = expected + rank
            got = results[rank][number]
            assert got.dtype == dtype
            assert torch.equal(got, expected)


def test_a_sender_runs_ahead_by_a_bounded_number(pool: RankPool, tmp_path: Path) -> None:
    # The system holds some megabytes of what goes over a socket.
    size = 12 << 20 if pool.kind == "tcp" else 4
    assert pool.run(tasks.run_ahead, 2, tmp_path, size) == [True, True]


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_exchange_brings_every_piece_to_its_place(pool: RankPool, num_ranks: int) -> None:
    rng = random.Random(fresh_seed())
    pairs = [(a, b) for a in range(num_ranks) for b in range(num_ranks) if a != b]
    moves = [
        [(*rng.choice(pairs), rng.choice((0, 1, 7, 3_000_001))) for _ in range(count)]
        for count in (0, 1, 25)
    ]
    moves.append([(0, 1, 10)] * 3)  # all others have nothing to do
    results = pool.run(tasks.exchange, num_ranks, moves, f"tp{num_ranks}")
    for rank, received in enumerate(results):
        expected = [
            (source, tasks.content(round_index, index, size))
            for round_index, pieces in enumerate(moves)
            for index, (source, target, size) in enumerate(pieces)
            if target == rank
        ]
        assert [peer for peer, _ in received] == [peer for peer, _ in expected]
        for (_, got), (_, wanted) in zip(received, expected, strict=True):
            assert torch.equal(got, wanted)


def test_what_was_sent_arrives_after_its_sender_has_left(pool: RankPool) -> None:
    assert pool.run(tasks.leave_early, 3) == [True] * 3


def test_a_closed_group_leaves_nothing_behind(pool: RankPool) -> None:
    first = pool.run(tasks.count_threads, 2)
    for _ in range(3):
        last = pool.run(tasks.count_threads, 2)
    assert last == first


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["recv", "all_reduce", "exchange"])
def test_a_dead_peer_is_an_error(kind: Kind, how: str) -> None:
    pool = RankPool(2, built(kind))
    try:
        pool.start(tasks.wait_for_the_dead, 2, how)
        error = pool.result(0)
        assert error, "asking a dead rank raised nothing"
        assert kind == "gloo" or "rank 1" in error
    finally:
        pool.close()


def test_links_that_are_dropped_unclosed_in_any_order_touch_no_memory_that_is_gone() -> None:
    """As where a rank fails while it is built: its sums may outlive the group."""
    built("shm")
    code = """
import gc
import os
import threading

import torch

from seesaw.distributed import RankGroup
from seesaw.distributed.shm import new_shared_file
from seesaw.layout import ParallelLayout

file = new_shared_file(2, 1 << 16)
kept = {}

def join(rank):
    group = RankGroup.connect(
        rank, 2, torch.device("cpu"), "shm", "", shared_fd=os.dup(file), slot_bytes=1 << 16
    )
    kept[rank] = group.tp_comm(ParallelLayout(1, 2, 1)), group.peer_exchange()

threads = [threading.Thread(target=join, args=(rank,)) for rank in (0, 1)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
gc.collect()
kept.clear()
gc.collect()
print("still here")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "still here\n", "")
