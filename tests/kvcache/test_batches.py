"""Batches of copies: which jobs' parts they take, how large they are, and who copies them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from seesaw.kvcache.batches import Batches, block_bytes, part_bytes
from seesaw.kvcache.copies import Job
from tests.kvcache.copies_harness import (
    BLOCK_SIZE,
    PART_BYTES,
    TIER,
    Setup,
    make_job,
)


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
