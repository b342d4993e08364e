"""Which tier blocks are handed out, and that none is lost."""

from __future__ import annotations

import random

import pytest

from seesaw.scheduler.kv_tier import TierBlocks


def test_blocks_from_the_lowest_on() -> None:
    tier = TierBlocks(8, 64)
    first, second = tier.allocate(2), tier.allocate(3)
    assert (first, second) == ([0, 1], [2, 3, 4])
    tier.release(first)
    assert tier.allocate(3) == [0, 1, 5], "returned ones before those that were never held"
    assert (tier.num_free, tier.num_used, tier.peak) == (2, 6, 6)


def test_nothing_is_taken_for_nothing() -> None:
    tier = TierBlocks(2, 64)
    assert tier.allocate(0) == []
    assert (tier.num_free, tier.peak) == (2, 0)


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (64, 1), (65, 2)])
def test_tokens_in_whole_blocks(tokens: int, blocks: int) -> None:
    assert TierBlocks(2, 64).blocks_for(tokens) == blocks


def test_more_than_there_is() -> None:
    tier = TierBlocks(2, 64)
    tier.allocate(1)
    with pytest.raises(AssertionError, match="2 tier blocks asked for, 1 free"):
        tier.allocate(2)


def test_a_block_that_leaked_or_is_held_twice_is_found() -> None:
    tier = TierBlocks(4, 64)
    held = tier.allocate(2)
    tier.check([held])
    for tables in ([held[:1]], [held, held[:1]], []):
        with pytest.raises(AssertionError, match="tier blocks held"):
            tier.check(tables)
    tier.release(held)
    tier.release(held[:1])
    with pytest.raises(AssertionError, match="tier blocks held"):
        tier.check([])


def test_the_peak_is_the_most_that_was_ever_held() -> None:
    """Whatever comes and goes: blocks beyond the peak are never touched."""
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    tier = TierBlocks(50, 1)
    tables: list[list[int]] = []
    most = 0
    for _ in range(500):
        if tables and rng.random() < 0.5:
            tier.release(tables.pop(rng.randrange(len(tables))))
        else:
            tables.append(tier.allocate(rng.randint(0, min(7, tier.num_free))))
        held = sum(map(len, tables))
        most = max(most, held)
        tier.check(tables)
        assert (tier.num_used, tier.num_free) == (held, 50 - held), seed
        assert tier.peak == most > max(map(max, filter(None, tables)), default=-1), seed
