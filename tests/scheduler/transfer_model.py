"""Stores and loads of the worker model: copies between its pools and its tier, block by block, at
any moment between the step that begins them and the report that they are complete.

Knows fingerprints and block numbers, no requests. From the step that begins a copy until the
scheduler has been told of its end, nobody else may use the blocks in a way that the copy would
notice; that is asked here (`reading`, `writing`, `tier_blocks`) and judged in `worker_model`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from seesaw.scheduler.output import Load, Phase, Store

STALE = -1

Pool = list[list[int]]
"""Fingerprints `[block][offset]`, STALE where nothing was written."""


def make_pool(num_blocks: int, block_size: int) -> Pool:
    return [[STALE] * block_size for _ in range(num_blocks)]


@dataclass(slots=True)
class _Transfer:
    order: Store | Load
    pool: Phase
    pieces: list[tuple[int, int, int]]
    """What is left to copy: device block, tier block, first token inside the tier block."""


@dataclass(slots=True)
class TransferModel:
    """All copies that the scheduler does not know to be complete."""

    pools: dict[Phase, Pool]
    tier: Pool
    block_size: int
    tier_block_size: int
    open: dict[int, _Transfer] = field(default_factory=dict)
    num_begun: int = 0

    def begin(self, order: Store | Load) -> None:
        assert order.transfer_id not in self.open, f"{order}: this id is in use"
        pool: Phase = order.phase if isinstance(order, Store) else "decode"
        size, wide = self.block_size, self.tier_block_size
        assert len(order.tier_blocks) == -(-order.num_tokens // wide), f"{order}: tier blocks"
        assert order.num_tokens > 0, f"{order} moves nothing"
        pieces = [
            (order.blocks[index], order.tier_blocks[index * size // wide], index * size % wide)
            for index in range(-(-order.num_tokens // size))
        ]
        self.open[order.transfer_id] = _Transfer(order, pool, pieces)
        self.num_begun += 1

    def copy_some(self, rng: random.Random) -> None:
        """Some pieces of some transfers, in any order."""
        for transfer in self.open.values():
            for _ in range(rng.randint(0, len(transfer.pieces))):
                self._copy_one(transfer, rng)

    def complete(self, transfer_id: int, rng: random.Random) -> Store | Load:
        """What is left of it, and the report to the scheduler."""
        transfer = self.open.pop(transfer_id)
        while transfer.pieces:
            self._copy_one(transfer, rng)
        return transfer.order

    def reading(self, pool: Phase) -> set[int]:
        """Device blocks that a store may still read."""
        return self._blocks(pool, Store)

    def writing(self, pool: Phase) -> set[int]:
        """Device blocks that a load may still write."""
        return self._blocks(pool, Load)

    @property
    def tier_blocks(self) -> set[int]:
        return {block for transfer in self.open.values() for block in transfer.order.tier_blocks}

    def is_moving(self, request_id: str) -> bool:
        return any(transfer.order.request_id == request_id for transfer in self.open.values())

    def _blocks(self, pool: Phase, kind: type[Store] | type[Load]) -> set[int]:
        return {
            block
            for transfer in self.open.values()
            if transfer.pool == pool and isinstance(transfer.order, kind)
            for block in transfer.order.blocks
        }

    def _copy_one(self, transfer: _Transfer, rng: random.Random) -> None:
        block, tier_block, first = transfer.pieces.pop(rng.randrange(len(transfer.pieces)))
        device, host = self.pools[transfer.pool], self.tier[tier_block]
        if isinstance(transfer.order, Store):
            host[first : first + self.block_size] = device[block]
        else:
            device[block] = host[first : first + self.block_size]
