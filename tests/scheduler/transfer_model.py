"""Stores, loads and relays of the worker model: copies between its pools and its tier, block by
block, at any moment between the step that begins them and the report that they are complete.

Knows fingerprints and block numbers, no requests. From the step that begins a copy until the
scheduler has been told of its end, or a step has awaited it, nobody else may use the blocks in a
way that the copy would notice; that is asked here (`reading`, `writing`, `tier_blocks`) and judged
in `worker_model`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from seesaw.scheduler.output import Load, Phase, Relay, Store

STALE = -1

Pool = list[list[int]]
"""Fingerprints `[block][offset]`, STALE where nothing was written."""


def make_pool(num_blocks: int, block_size: int) -> Pool:
    return [[STALE] * block_size for _ in range(num_blocks)]


Order = Store | Load | Relay


@dataclass(slots=True)
class _Transfer:
    order: Order
    reads: dict[Phase, Sequence[int]]
    """Device blocks, by pool, that it may still read; and write."""
    writes: dict[Phase, Sequence[int]]
    pieces: list[tuple[int, int, int]]
    """What is left to copy: device block, tier block, first token inside the tier block; of a relay
    the block of the prefill pool, that of the decode pool and 0."""
    is_done_here: bool = False
    """A step has awaited it, though the scheduler does not know yet."""


@dataclass(slots=True)
class TransferModel:
    """All copies that the scheduler does not know to be complete."""

    pools: dict[Phase, Pool]
    tier: Pool
    block_size: int
    tier_block_size: int
    open: dict[int, _Transfer] = field(default_factory=dict)
    num_begun: int = 0

    def begin(self, order: Order) -> None:
        assert order.transfer_id not in self.open, f"{order}: this id is in use"
        size, wide = self.block_size, self.tier_block_size
        count = -(-order.num_tokens // size)
        assert order.num_tokens > 0, f"{order} moves nothing"
        reads: dict[Phase, Sequence[int]] = {}
        writes: dict[Phase, Sequence[int]] = {}
        if isinstance(order, Relay):
            assert len(order.blocks) == len(order.to_blocks) == count, f"{order}: blocks"
            pieces = [(*pair, 0) for pair in zip(order.blocks, order.to_blocks, strict=True)]
            reads["prefill"], writes["decode"] = order.blocks, order.to_blocks
        else:
            assert len(order.tier_blocks) == -(-order.num_tokens // wide), f"{order}: tier blocks"
            pieces = [
                (order.blocks[index], order.tier_blocks[index * size // wide], index * size % wide)
                for index in range(count)
            ]
            if isinstance(order, Store):
                reads[order.phase] = order.blocks
            else:
                writes["decode"] = order.blocks
        self.open[order.transfer_id] = _Transfer(order, reads, writes, pieces)
        self.num_begun += 1

    def copy_some(self, rng: random.Random) -> None:
        """Some pieces of some transfers, in any order."""
        for transfer in self.open.values():
            if self._may_begin(transfer):
                for _ in range(rng.randint(0, len(transfer.pieces))):
                    self._copy_one(transfer, rng)

    def _may_begin(self, transfer: _Transfer) -> bool:
        """What it comes after is copied."""
        order = transfer.order
        after = order.after if isinstance(order, Load) else ()
        return not any(self.open[one].pieces for one in after if one in self.open)

    def finish_here(self, transfer_id: int, rng: random.Random) -> Order | None:
        """A step waits for it, and for what it comes after. None where it is complete already."""
        transfer = self.open.get(transfer_id)
        if transfer is None:
            return None
        if transfer.is_done_here:
            # Not again what it came after: chains of loads and stores branch at each link.
            return transfer.order
        if isinstance(transfer.order, Load):
            for one in transfer.order.after:
                self.finish_here(one, rng)
        while transfer.pieces:
            self._copy_one(transfer, rng)
        transfer.is_done_here = True
        return transfer.order

    def complete(self, transfer_id: int, rng: random.Random) -> Order:
        """What is left of it, and the report to the scheduler."""
        order = self.finish_here(transfer_id, rng)
        assert order is not None, f"{transfer_id} is not in flight"
        del self.open[transfer_id]
        return order

    def reading(self, pool: Phase, but: Sequence[int] = ()) -> set[int]:
        """Device blocks that a store or relay may still read, one that is not among `but`."""
        return {
            block
            for number, transfer in self.open.items()
            if not transfer.is_done_here and number not in but
            for block in transfer.reads.get(pool, ())
        }

    def writing(self, pool: Phase) -> set[int]:
        """Device blocks that a load or relay may still write."""
        return {
            block
            for transfer in self.open.values()
            if not transfer.is_done_here
            for block in transfer.writes.get(pool, ())
        }

    @property
    def tier_blocks(self) -> set[int]:
        return self.tier_blocks_of_others("")

    def tier_blocks_of_others(self, request_id: str) -> set[int]:
        """In use by copies for somebody else."""
        return {
            block
            for transfer in self.open.values()
            if not isinstance(transfer.order, Relay) and transfer.order.request_id != request_id
            for block in transfer.order.tier_blocks
        }

    def under_way(self, request_id: str) -> set[int]:
        """Copies for a request that no step has awaited."""
        return {
            number
            for number, transfer in self.open.items()
            if transfer.order.request_id == request_id and not transfer.is_done_here
        }

    def is_moving(self, request_id: str) -> bool:
        return any(transfer.order.request_id == request_id for transfer in self.open.values())

    def _copy_one(self, transfer: _Transfer, rng: random.Random) -> None:
        block, other, first = transfer.pieces.pop(rng.randrange(len(transfer.pieces)))
        order, end = transfer.order, first + self.block_size
        if isinstance(order, Relay):
            self.pools["decode"][other] = list(self.pools["prefill"][block])
        elif isinstance(order, Store):
            self.tier[other][first:end] = self.pools[order.phase][block]
        else:
            self.pools["decode"][block] = self.tier[other][first:end]
