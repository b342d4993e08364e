"""The block pool against a model that keeps exact prefixes."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from seesaw.scheduler.blocks import ROOT, BlockPool


def fill(pool: BlockPool, tokens: list[int]) -> list[int]:
    """Allocate and register the full blocks of `tokens`, and one more for what is left over."""
    size = pool.block_size
    blocks = pool.allocate(-(-len(tokens) // size))
    parent = ROOT
    for index in range(len(tokens) // size):
        parent = pool.register(blocks[index], parent, tokens[index * size : (index + 1) * size])
    return blocks


def test_a_new_pool_is_free_and_matches_nothing() -> None:
    pool = BlockPool(4, 2, enable_caching=True)
    assert pool.num_free == 4
    assert pool.match([1, 2, 3, 4], 4) == ([], ROOT)
    pool.check([])


def test_a_pool_of_no_blocks() -> None:
    pool = BlockPool(0, 2, enable_caching=True)
    assert pool.num_free == 0
    assert pool.allocate(0) == []
    with pytest.raises(AssertionError, match="1 blocks asked for, 0 free"):
        pool.allocate(1)


def test_allocate_gives_distinct_blocks_until_none_is_left() -> None:
    pool = BlockPool(5, 2, enable_caching=True)
    blocks = pool.allocate(2) + pool.allocate(3)
    assert sorted(blocks) == [0, 1, 2, 3, 4]
    assert pool.num_free == 0
    with pytest.raises(AssertionError, match="1 blocks asked for, 0 free"):
        pool.allocate(1)


@pytest.mark.parametrize(
    ("tokens", "max_tokens", "num_matched"),
    [
        ([1, 2, 3, 4, 5], 5, 2),
        ([1, 2, 3, 4], 4, 2),
        ([1, 2, 3, 4], 3, 1),
        ([1, 2, 3, 9], 4, 1),
        ([1, 2, 3], 3, 1),
        ([1], 1, 0),
        ([], 0, 0),
        ([9, 2, 3, 4], 4, 0),
        ([3, 4], 2, 0),
    ],
)
def test_match_finds_the_longest_prefix_of_full_blocks(
    tokens: list[int], max_tokens: int, num_matched: int
) -> None:
    pool = BlockPool(8, 2, enable_caching=True)
    blocks = fill(pool, [1, 2, 3, 4, 5])
    assert pool.match(tokens, max_tokens)[0] == blocks[:num_matched]


def test_equal_blocks_after_different_prefixes_are_different() -> None:
    pool = BlockPool(8, 2, enable_caching=True)
    first, second = fill(pool, [1, 2, 5, 6]), fill(pool, [3, 4, 5, 6])
    assert pool.match([1, 2, 5, 6], 4)[0] == first
    assert pool.match([3, 4, 5, 6], 4)[0] == second


def test_a_second_block_with_the_same_content_leaves_the_first_shared() -> None:
    pool = BlockPool(8, 2, enable_caching=True)
    first, second = fill(pool, [1, 2, 3, 4]), fill(pool, [1, 2, 3, 4])
    assert pool.match([1, 2, 3, 4], 4)[0] == first
    pool.release(second)
    assert pool.match([1, 2, 3, 4], 4)[0] == first
    pool.check([first])


def test_without_caching_nothing_is_found() -> None:
    pool = BlockPool(4, 2, enable_caching=False)
    blocks = pool.allocate(2)
    pool.release(blocks)
    assert pool.match([1, 2], 2) == ([], ROOT)


def test_a_shared_block_is_free_when_all_let_go() -> None:
    pool = BlockPool(2, 2, enable_caching=True)
    blocks = fill(pool, [1, 2])
    pool.share(blocks)
    pool.release(blocks)
    assert pool.num_free == 1
    pool.check([blocks])
    pool.release(blocks)
    assert pool.num_free == 2
    with pytest.raises(AssertionError, match="released more often than held"):
        pool.release(blocks)


def test_free_blocks_keep_their_content_and_can_be_shared_again() -> None:
    pool = BlockPool(3, 2, enable_caching=True)
    blocks = fill(pool, [1, 2, 3, 4])
    pool.release(blocks)
    assert pool.num_free == 3
    found, _ = pool.match([1, 2, 3, 4], 4)
    assert found == blocks
    assert pool.num_free_among(found) == 2
    pool.share(found)
    assert pool.num_free == 1
    assert pool.num_free_among(found) == 0
    assert pool.allocate(1)[0] not in found


def test_blocks_without_content_are_reused_first_then_ends_before_beginnings() -> None:
    pool = BlockPool(4, 2, enable_caching=True)
    blocks = fill(pool, [1, 2, 3, 4, 5, 6, 7])
    pool.release(blocks)
    order = [pool.allocate(1)[0] for _ in range(4)]
    assert order == [blocks[3], blocks[2], blocks[1], blocks[0]]
    assert pool.match([1, 2], 2) == ([], ROOT)


def test_a_block_without_content_is_reused_before_older_ones_with_content() -> None:
    pool = BlockPool(2, 2, enable_caching=True)
    kept, empty = fill(pool, [1, 2]), pool.allocate(1)
    pool.release(kept)
    pool.release(empty)
    assert pool.allocate(1) == empty
    assert pool.match([1, 2], 2)[0] == kept


def test_the_least_recently_used_content_goes_first() -> None:
    pool = BlockPool(3, 2, enable_caching=True)
    old, new = fill(pool, [1, 2]), fill(pool, [3, 4])
    spare = pool.allocate(1)
    pool.release(old)
    pool.release(new)
    pool.share(old)  # used again: now the other one is the older
    pool.release(old)
    assert pool.allocate(1) == new
    assert pool.match([1, 2], 2)[0] == old
    pool.check([spare, new])


def test_poisonable_lists_blocks_freed_without_content() -> None:
    pool = BlockPool(4, 2, enable_caching=True)
    pool.poisonable = []
    blocks = fill(pool, [1, 2, 3])
    pool.release(blocks)
    assert pool.poisonable == [blocks[1]]


def test_check_names_a_block_that_is_held_by_nobody() -> None:
    pool = BlockPool(3, 2, enable_caching=True)
    (block,) = pool.allocate(1)
    with pytest.raises(AssertionError, match=f"block {block}: 0 tables, 1 holders"):
        pool.check([])
    with pytest.raises(AssertionError, match=f"block {block}: 2 tables, 1 holders"):
        pool.check([[block], [block]])


class PoolMachine(RuleBasedStateMachine):
    """Requests with few different tokens come and go; a block always holds what it is found by."""

    NUM_BLOCKS, SIZE = 7, 2

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(self.NUM_BLOCKS, self.SIZE, enable_caching=True)
        self.tables: list[list[int]] = []
        self.written: dict[int, tuple[int, ...]] = {}  # block -> exact prefix up to its end

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9))
    def admit(self, tokens: list[int]) -> None:
        pool, size = self.pool, self.SIZE
        shared, content = pool.match(tokens, len(tokens) - 1)
        assert len(shared) * size < len(tokens)
        for index, block in enumerate(shared):
            assert self.written[block] == tuple(tokens[: (index + 1) * size]), "a wrong prefix"
        count = -(-len(tokens) // size) - len(shared)
        if count + pool.num_free_among(shared) > pool.num_free:
            return
        pool.share(shared)
        table = shared + pool.allocate(count)
        for index in range(len(shared), len(table)):
            block = table[index]
            self.written[block] = tuple(tokens[: (index + 1) * size])
            if (index + 1) * size <= len(tokens):
                content = pool.register(block, content, tokens[index * size : (index + 1) * size])
        self.tables.append(table)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.tables) - 1))
        self.pool.release(self.tables.pop(index))

    @invariant()
    def accounts_agree(self) -> None:
        self.pool.check(self.tables)
        held = {block for table in self.tables for block in table}
        assert self.pool.num_free == self.NUM_BLOCKS - len(held)


PoolMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=30)
TestPoolMachine = PoolMachine.TestCase
