"""Which block of the host tier belongs to whom. Knows numbers, never memory."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence


class TierBlocks:
    """`num_blocks` blocks of `block_size` tokens, each held by one request or free.

    The lowest free block goes first: memory behind blocks that were never held need not be there
    yet, and as long as one below is free none of them is touched.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.peak = 0
        """Most blocks that were held at once; blocks from this number on were never held."""
        self._returned: list[int] = []  # a heap; all below `peak`

    @property
    def num_free(self) -> int:
        return self.num_blocks - self.peak + len(self._returned)

    @property
    def num_used(self) -> int:
        return self.peak - len(self._returned)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Hold `count` blocks. The caller has checked `num_free`."""
        assert count <= self.num_free, f"{count} tier blocks asked for, {self.num_free} free"
        again = min(count, len(self._returned))
        blocks = [heapq.heappop(self._returned) for _ in range(again)]
        fresh = count - again
        blocks.extend(range(self.peak, self.peak + fresh))
        self.peak += fresh
        return blocks

    def release(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            heapq.heappush(self._returned, block)

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError unless `tables` account for every held block exactly."""
        held = [block for table in tables for block in table]
        assert sorted([*held, *self._returned]) == list(range(self.peak)), (
            f"tier blocks held {sorted(held)}, returned {sorted(self._returned)}, peak {self.peak}"
        )
