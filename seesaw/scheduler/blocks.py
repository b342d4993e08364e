"""Which KV block belongs to whom: reference counts, least-recently-used reuse, prefix sharing.

Knows block numbers and token ids, never tensors. A full block is found again by *content*: the key
is the content of the block before it and the tokens inside, compared exactly, so two different
prefixes can never be taken for each other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

ROOT = 0
"""Content id of the empty prefix."""

_Key = tuple[int, tuple[int, ...]]


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens.

    A block is *held* (reference count above 0) or *free*. A free block keeps its content, and can
    be shared again, until it is allocated for something else; the one that was freed first goes
    first.
    """

    def __init__(self, num_blocks: int, block_size: int, *, enable_caching: bool) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_caching = enable_caching
        self.poisonable: list[int] | None = None
        """Where a debug run wants it: blocks freed without content since the list was last
        emptied."""
        self.read_by: dict[int, int] = {}
        """Blocks that were released while a store still reads them, by that transfer's id: whoever
        takes one waits for it on each rank."""
        self.written_in: dict[int, int] = {}
        """Where there are lanes: blocks with content that a step in flight writes, by its lane, in
        which alone they can be shared yet."""
        self._read_blocks: dict[int, list[int]] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._holders = [0] * num_blocks
        self._key_of: dict[int, _Key] = {}
        self._cached: dict[_Key, tuple[int, int]] = {}  # key -> (block, content id)
        self._next_content = ROOT + 1

    @property
    def num_free(self) -> int:
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def num_free_among(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` are free now; sharing them takes that many away from `num_free`."""
        return sum(block in self._free for block in blocks)

    def match(self, tokens: Sequence[int], max_tokens: int, lane: int = 0) -> tuple[list[int], int]:
        """Blocks that hold the longest known prefix of `tokens` within `max_tokens`, and its
        content id, as a step of `lane` planned now will find them."""
        blocks: list[int] = []
        content = ROOT
        if not self.enable_caching:
            return blocks, content
        size = self.block_size
        for start in range(0, max_tokens - size + 1, size):
            found = self._cached.get((content, tuple(tokens[start : start + size])))
            if found is None or self.written_in.get(found[0], lane) != lane:
                break
            block, content = found
            blocks.append(block)
        return blocks, content

    def share(self, blocks: Iterable[int]) -> None:
        """Hold blocks that `match` found."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._free[block]
            self._holders[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Hold `count` blocks with no content. The caller has checked `num_free`."""
        assert count <= len(self._free), f"{count} blocks asked for, {len(self._free)} free"
        blocks = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            key = self._key_of.pop(block, None)
            if key is not None:
                del self._cached[key]
            self._holders[block] = 1
            blocks.append(block)
        return blocks

    def allocate_for_copy(self, count: int) -> list[int]:
        """As `allocate`; a copy fills them, at any time."""
        blocks = self.allocate(count)
        if self.poisonable:
            # They would be poisoned in the next step of their phase, perhaps after the copy.
            taken = set(blocks)
            self.poisonable = [block for block in self.poisonable if block not in taken]
        return blocks

    def register(self, block: int, parent: int, tokens: Sequence[int]) -> int:
        """Say what a full block holds: `tokens` after the prefix `parent`. Returns its content id.

        Where another block holds the same already, that one stays the shared one and its id is
        returned.
        """
        key = (parent, tuple(tokens))
        known = self._cached.get(key)
        if known is not None:
            return known[1]
        content = self._next_content
        self._next_content += 1
        self._cached[key] = (block, content)
        self._key_of[block] = key
        return content

    def release(self, blocks: Sequence[int]) -> None:
        """Let go of a request's blocks, last first, so that beginnings of prompts are kept
        longest."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] > 0:
                continue
            assert self._holders[block] == 0, f"block {block} released more often than held"
            self._free[block] = None
            if block not in self._key_of:
                # Nothing to be found again in it: reuse it before blocks with content.
                self._free.move_to_end(block, last=False)
                if self.poisonable is not None:
                    self.poisonable.append(block)

    def release_read(self, blocks: Sequence[int], transfer_id: int) -> None:
        """Let go of blocks without content that a store still reads. They are free at once, and
        taken last."""
        for block in blocks:
            self._holders[block] -= 1
            assert self._holders[block] == 0, f"block {block} of a store is shared"
            self._free[block] = None
            self.read_by[block] = transfer_id
        self._read_blocks[transfer_id] = list(blocks)

    def was_read(self, transfer_id: int) -> None:
        """The transfer is complete everywhere."""
        for block in self._read_blocks.pop(transfer_id, ()):
            if self.read_by.get(block) == transfer_id:
                del self.read_by[block]

    def was_written(self, blocks: Iterable[int]) -> None:
        """The step that writes them is done."""
        for block in blocks:
            self.written_in.pop(block, None)

    def readers(self, blocks: Iterable[int]) -> set[int]:
        """Transfers that still read some of `blocks`."""
        read_by = self.read_by
        return {read_by[block] for block in blocks if block in read_by} if read_by else set()

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError unless `tables` account for every held block exactly."""
        count = [0] * self.num_blocks
        for table in tables:
            for block in table:
                count[block] += 1
        for block, holders in enumerate(self._holders):
            assert count[block] == holders, (
                f"block {block}: {count[block]} tables, {holders} holders"
            )
            assert (holders == 0) == (block in self._free), f"block {block} is in the wrong list"
        for key, (block, _) in self._cached.items():
            assert self._key_of.get(block) == key, f"block {block} is cached under a stale key"
