"""`plan_reshard`: for every rank and tensor of the new layout, where each of its bytes comes from.

Set arithmetic on byte runs, the same on every rank that computes it; moves nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from seesaw.layout.arena import ArenaPlan, layer_bytes, positions
from seesaw.layout.format import StoredParam, WeightFormat
from seesaw.layout.ranges import RankRanges
from seesaw.layout.reshard import Piece, ReshardPlan, Round, Source
from seesaw.layout.rounds import Move, make_rounds
from seesaw.layout.spans import Span, moves, shared, spans, without

Reload = Literal["missing", "all", "none"]
"""What a change of layout fetches: what is not in place, everything (as the paper does), or
nothing, since ranks run straight from the host image: no arena, and no plan."""


def plan_reshard(
    fmt: WeightFormat,
    old: Sequence[RankRanges] | None,
    new: Sequence[RankRanges],
    arenas: Sequence[ArenaPlan],
    *,
    old_index: int,
    new_index: int,
    reload: Reload = "missing",
    peers: bool = False,
) -> ReshardPlan:
    """How the ranks of one replica get from layout `old` to `new`, each the ranges of all ranks.

    `old_index` and `new_index` say which layouts of the arenas these are. Without `old` it is the
    first load: all tensors of `new` and what stays for every layout, from the host. Else a byte is
    resident where it has its address already, copied where its rank holds it elsewhere, taken from
    another rank that holds it if `peers` allows (of several the one that sends least), and else
    taken from the host image. `reload="all"` takes all that moves from the host.

    What a round reads from one rank's arena is at most one layer of the model, so that staging is
    bounded; what would be more comes from the host.
    """
    if old is None:
        return ReshardPlan(_first_load(fmt, new, arenas, new_index))
    sides = _Sides(fmt, old, new, arenas, old_index, new_index)
    sent = [0] * len(old)
    moving = [
        Move(param.layer, rank, piece)
        for param in fmt.params
        if param.layer is not None and moves(param)
        for rank in range(len(new))
        for piece in sides.pieces(param, rank, reload, peers, sent)
    ]
    params = {param.name: param for param in fmt.params}

    def to_host(move: Move) -> list[Move]:
        return [
            move._replace(piece=piece)
            for piece in sides.within(params[move.piece.param], move.rank, move.piece)
        ]

    stages = max(old, new, key=lambda ranges: len({held.layers for held in ranges}))
    rounds = make_rounds(
        moving,
        len(new),
        groups=positions(stages),
        limit=layer_bytes(fmt),
        to_host=to_host,
    )
    return ReshardPlan(rounds)


@dataclass(frozen=True, slots=True)
class _Sides:
    """Both layouts of a change, and the addresses of their tensors."""

    fmt: WeightFormat
    old: Sequence[RankRanges]
    new: Sequence[RankRanges]
    arenas: Sequence[ArenaPlan]
    old_index: int
    new_index: int

    def from_host(self, param: StoredParam, rank: int) -> list[Piece]:
        """All of the new tensor of `rank`."""
        target, wanted = self._target(param, rank)
        return _merged(_host(self.fmt, param, span, target + span.at) for span in wanted)

    def within(self, param: StoredParam, rank: int, piece: Piece) -> list[Piece]:
        """What `piece` brings to `rank`, from the host instead."""
        target, wanted = self._target(param, rank)
        start = piece.target - target
        pieces = []
        for span in wanted:
            first, last = max(span.at, start), min(span.at + span.size, start + piece.size)
            if first < last:
                part = Span(span.start + first - span.at, last - first, first)
                pieces.append(_host(self.fmt, param, part, target + part.at))
        return pieces

    def pieces(
        self, param: StoredParam, rank: int, reload: Reload, peers: bool, sent: list[int]
    ) -> list[Piece]:
        """The new tensor of `rank` by source; `sent` counts what each rank gives to others."""
        if reload == "all":
            return self.from_host(param, rank)
        target, missing = self._target(param, rank)
        pieces: list[Piece] = []
        for holder in self._holders(rank, peers, sent):
            base = self.arenas[holder].offsets[self.old_index].get(param.name)
            if base is None or not missing:
                continue
            held = spans(self.fmt, param, self.old[holder])
            for part in shared(missing, held):
                at, source_at = target + part.at, base + part.other_at
                source: Source = "peer"
                if holder == rank:
                    source = "resident" if at == source_at else "copy"
                else:
                    sent[holder] += part.size
                pieces.append(Piece(param.name, part.size, at, source, holder, source_at))
            missing = without(missing, held)
        pieces += [_host(self.fmt, param, span, target + span.at) for span in missing]
        return _merged(pieces)

    def _target(self, param: StoredParam, rank: int) -> tuple[int, Sequence[Span]]:
        target = self.arenas[rank].offsets[self.new_index].get(param.name, 0)
        return target, spans(self.fmt, param, self.new[rank])

    def _holders(self, rank: int, peers: bool, sent: Sequence[int]) -> list[int]:
        """The rank itself, then the others, those that send least first."""
        others = [other for other in range(len(self.old)) if peers and other != rank]
        return [rank, *sorted(others, key=lambda other: (sent[other], other))]


def _first_load(
    fmt: WeightFormat, new: Sequence[RankRanges], arenas: Sequence[ArenaPlan], new_index: int
) -> tuple[Round, ...]:
    """One round per layer, and one each for what lies before and behind them in the image."""
    sides = _Sides(fmt, new, new, arenas, new_index, new_index)
    residents = [{found.param: found for found in arena.residents} for arena in arenas]
    rounds: list[Round] = []
    for layer, params in groupby(fmt.params, key=lambda param: param.layer):
        ranks: list[list[Piece]] = [[] for _ in new]
        for param in params:
            for rank, pieces in enumerate(ranks):
                if moves(param):
                    pieces += sides.from_host(param, rank)
                elif (found := residents[rank].get(param.name)) is not None:
                    pieces.append(_host(fmt, param, Span(*found.run, 0), found.offset))
        rounds.append(Round(() if layer is None else (layer,), tuple(map(tuple, ranks))))
    return tuple(rounds)


def _host(fmt: WeightFormat, param: StoredParam, span: Span, target: int) -> Piece:
    offset = fmt.image_offsets[param.name] + span.start
    return Piece(param.name, span.size, target, "host", -1, offset)


def _merged(pieces: Iterable[Piece]) -> list[Piece]:
    """Pieces of one parameter in the order of their targets; what goes on where the piece before
    it ends, at both places, is part of that piece."""
    merged: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: piece.target):
        last = merged[-1] if merged else None
        if (
            last is not None
            and (last.source, last.rank) == (piece.source, piece.rank)
            and last.target + last.size == piece.target
            and last.offset + last.size == piece.offset
        ):
            merged[-1] = last._replace(size=last.size + piece.size)
        else:
            merged.append(piece)
    return merged
