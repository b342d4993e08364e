"""`ReshardPlan`: what moves from where when a replica changes its layout, known before it moves.

Standard library only. Offsets and sizes in bytes; ranks count within the replica.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Source = Literal["resident", "copy", "peer", "host"]
"""resident: already at its address; copy: elsewhere in the rank's own arena; peer: in another
rank's arena; host: in the shared image."""


class Piece(NamedTuple):
    """`size` bytes of `param` that belong at `target` of the rank's arena.

    They lie at `offset` of the arena of `rank` (copy, peer) or of the host image (host).
    """

    param: str
    size: int
    target: int
    source: Source
    rank: int
    offset: int


@dataclass(frozen=True, slots=True)
class Round:
    """Pieces by rank that change together: all sources are read before any target is written.

    A round is one layer where nothing is read from arenas, else the smallest set of layers whose
    pieces overwrite one another's sources.
    """

    layers: tuple[int, ...]
    pieces: tuple[tuple[Piece, ...], ...]


@dataclass(frozen=True, slots=True)
class ReshardPlan:
    """Rounds in the order in which every rank runs them."""

    rounds: tuple[Round, ...]

    def bytes_by_source(self, rank: int | None = None) -> dict[Source, int]:
        """Bytes of one rank, or of all, resident ones (which do not move) included."""
        totals: dict[Source, int] = {"resident": 0, "copy": 0, "peer": 0, "host": 0}
        for round in self.rounds:
            for owner, pieces in enumerate(round.pieces):
                if rank is None or owner == rank:
                    for piece in pieces:
                        totals[piece.source] += piece.size
        return totals

    def snapshot_bytes(self, rank: int) -> int:
        """The most that one round reads from the arena of `rank`, for itself and for others."""
        return max(
            (
                sum(
                    piece.size
                    for pieces in round.pieces
                    for piece in pieces
                    if piece.source in ("copy", "peer") and piece.rank == rank
                )
                for round in self.rounds
            ),
            default=0,
        )
