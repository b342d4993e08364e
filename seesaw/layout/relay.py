"""Which rank sends which KV to which when a request goes from the prefill pool to the decode pool.

Set arithmetic on what ranks hold in the two layouts: owns pieces and their order, which is the same
on all ranks, and counts bytes. Standard library only; who carries them is `kvcache/relay.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from seesaw.families.spec import ModelSpec
from seesaw.layout.kv import owned_heads
from seesaw.layout.parallel import ParallelLayout
from seesaw.layout.ranges import Range, rank_ranges
from seesaw.layout.reshard import Source


class RelayPiece(NamedTuple):
    """Layers and KV heads of every block that `receiver` takes from `sender`, which is itself where
    it holds them already: a copy within the device."""

    sender: int
    receiver: int
    layers: Range
    heads: Range

    @property
    def is_local(self) -> bool:
        return self.sender == self.receiver

    def tile_pairs(self) -> int:
        """K and V tiles of one block."""
        return self.layers.size * self.heads.size


def relay_pieces(
    prefill: ParallelLayout, decode: ParallelLayout, spec: ModelSpec
) -> tuple[RelayPiece, ...]:
    """All pieces of one replica (dp 1), by sender, then by receiver.

    What a rank holds in the prefill layout it takes from itself; a head that several others hold
    comes from the lowest of them, as in a store.
    """
    ranks = range(decode.num_ranks)
    before = [rank_ranges(prefill, spec, rank) for rank in ranks]
    after = [rank_ranges(decode, spec, rank) for rank in ranks]
    pieces = []
    for sender in ranks:
        owned = owned_heads(prefill, spec, sender)
        for receiver in ranks:
            own, new = before[receiver], after[receiver]
            layers = new.layers.overlap(before[sender].layers)
            heads = new.kv_heads.overlap(own.kv_heads if sender == receiver else owned)
            # Ranks of a stage hold the same head or different ones, never some of another's.
            has_it = own.layers == before[sender].layers and own.kv_heads.overlap(heads) == heads
            if layers.size and heads.size and (sender == receiver or not has_it):
                pieces.append(RelayPiece(sender, receiver, layers, heads))
    return tuple(pieces)


def relay_takes(
    pieces: Sequence[RelayPiece], tile_bytes: int, num_ranks: int
) -> list[dict[Source, int]]:
    """Of one block: the bytes that each rank takes, by source: `copy` from itself, `peer`."""
    takes: list[dict[Source, int]] = [{"copy": 0, "peer": 0} for _ in range(num_ranks)]
    for piece in pieces:
        source: Source = "copy" if piece.is_local else "peer"
        takes[piece.receiver][source] += 2 * tile_bytes * piece.tile_pairs()
    return takes
