"""Rounds of random rewrites: run over values, bounded, and no coarser than they must be."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from seesaw.layout.reshard import Piece, Round
from seesaw.layout.rounds import Move, make_rounds

Cell = tuple[int, int]
"""Rank and address."""


@dataclass
class Rewrite:
    """What arenas hold, and moves into them. A value is (layer, number); on the host value `v` lies
    at `host[v]`."""

    num_layers: int
    arenas: list[list[tuple[int, int] | None]]
    moves: list[Move]
    wanted: dict[Cell, tuple[int, int]]
    values: list[tuple[int, int]]

    def to_host(self, move: Move) -> list[Move]:
        """Value by value, since neighbours in an arena are none in the image."""
        start = move.piece.target
        return [
            move._replace(
                piece=Piece("", 1, at, "host", -1, self.values.index(self.wanted[move.rank, at]))
            )
            for at in range(start, start + move.piece.size)
        ]

    def rounds(self, limit: int, groups: dict[int, int] | None = None) -> tuple[Round, ...]:
        return make_rounds(
            self.moves,
            len(self.arenas),
            groups=groups or {layer: layer for layer in range(self.num_layers)},
            limit=limit,
            to_host=self.to_host,
        )

    def run(self, rounds: tuple[Round, ...]) -> None:
        arenas = [list(arena) for arena in self.arenas]
        for found in rounds:
            writes = [
                (rank, piece.target + i, self._read(arenas, piece, i))
                for rank, pieces in enumerate(found.pieces)
                for piece in pieces
                if piece.source != "resident"
                for i in range(piece.size)
            ]
            for rank, at, value in writes:
                arenas[rank][at] = value
        assert {cell: arenas[cell[0]][cell[1]] for cell in self.wanted} == self.wanted

    def _read(
        self, arenas: list[list[tuple[int, int] | None]], piece: Piece, i: int
    ) -> tuple[int, int] | None:
        if piece.source == "host":
            return self.values[piece.offset + i]
        return arenas[piece.rank][piece.offset + i]


@st.composite
def rewrites(draw: st.DrawFn) -> Rewrite:
    """Runs of values of one layer each, in arenas; then the same runs elsewhere, some of them more
    than once, some left out, some from the host."""
    num_layers, num_ranks = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    counter = itertools.count()
    arenas: list[list[tuple[int, int] | None]] = []
    runs: list[tuple[int, int, int, int]] = []
    for rank in range(num_ranks):
        arena: list[tuple[int, int] | None] = []
        for _ in range(draw(st.integers(1, 5))):
            layer, size = draw(st.integers(0, num_layers - 1)), draw(st.integers(1, 4))
            runs.append((layer, rank, len(arena), size))
            arena += [(layer, next(counter)) for _ in range(size)]
            arena += [None] * draw(st.integers(0, 2))
        arenas.append(arena)
    values = [value for arena in arenas for value in arena if value is not None]
    moves: list[Move] = []
    wanted: dict[Cell, tuple[int, int]] = {}
    for rank, arena in enumerate(arenas):
        at = 0
        for layer, source_rank, offset, size in draw(st.lists(st.sampled_from(runs), max_size=6)):
            at += draw(st.integers(0, 2))
            content = arenas[source_rank][offset : offset + size]
            host = draw(st.integers(0, 5)) == 0
            if source_rank == rank and offset == at:
                piece = Piece("", size, at, "resident", rank, offset)
            elif host:
                piece = Piece("", size, at, "host", -1, values.index(content[0]))  # type: ignore[arg-type]
            else:
                source = "copy" if source_rank == rank else "peer"
                piece = Piece("", size, at, source, source_rank, offset)  # type: ignore[arg-type]
            moves.append(Move(layer, rank, piece))
            wanted.update({(rank, at + i): value for i, value in enumerate(content) if value})
            at += size
        arena += [None] * max(0, at - len(arena))
    covered = {move.layer for move in moves}
    moves += [
        Move(layer, 0, Piece("", 0, 0, "resident", 0, 0))
        for layer in range(num_layers)
        if layer not in covered
    ]
    return Rewrite(num_layers, arenas, sorted(moves), wanted, values)


def reads(rewrite: Rewrite) -> dict[int, set[Cell]]:
    return cells(rewrite, lambda move: (move.piece.rank, move.piece.offset), ("copy", "peer"))


def writes(rewrite: Rewrite) -> dict[int, set[Cell]]:
    return cells(rewrite, lambda move: (move.rank, move.piece.target), ("copy", "peer", "host"))


def cells(rewrite, start, sources) -> dict[int, set[Cell]]:  # type: ignore[no-untyped-def]
    found: dict[int, set[Cell]] = {layer: set() for layer in range(rewrite.num_layers)}
    for move in rewrite.moves:
        if move.piece.source in sources:
            rank, first = start(move)
            found[move.layer] |= {(rank, first + i) for i in range(move.piece.size)}
    return found


def smallest_rounds(rewrite: Rewrite) -> set[tuple[int, ...]]:
    """Layers that must change together, by closing 'no later than' under itself."""
    layers = range(rewrite.num_layers)
    read, write = reads(rewrite), writes(rewrite)
    before = {(a, b) for a in layers for b in layers if a == b or read[a] & write[b]}
    for k, a, b in itertools.product(layers, layers, layers):
        if (a, k) in before and (k, b) in before:
            before.add((a, b))
    return {tuple(b for b in layers if (a, b) in before and (b, a) in before) for a in layers}


@given(rewrites())
def test_without_a_limit_rounds_are_the_smallest_and_no_read_comes_late(rewrite: Rewrite) -> None:
    rounds = rewrite.rounds(10**9)
    rewrite.run(rounds)
    assert {found.layers for found in rounds} == smallest_rounds(rewrite)
    assert len(rounds) == len({found.layers for found in rounds})
    pieces = [Move(move.layer, move.rank, move.piece) for move in rewrite.moves]
    kept = sorted((r, p) for f in rounds for r, ranks in enumerate(f.pieces) for p in ranks)
    assert kept == sorted((move.rank, move.piece) for move in pieces)


@given(rewrites(), st.integers(0, 8), st.booleans())
def test_no_round_reads_more_of_an_arena_than_the_limit(
    rewrite: Rewrite, limit: int, paired: bool
) -> None:
    groups = {layer: layer // (1 + paired) for layer in range(rewrite.num_layers)}
    rounds = rewrite.rounds(limit, groups)
    rewrite.run(rounds)
    assert sorted(layer for found in rounds for layer in found.layers) == list(
        range(rewrite.num_layers)
    )
    for found, rank in itertools.product(rounds, range(len(rewrite.arenas))):
        read = sum(
            piece.size
            for pieces in found.pieces
            for piece in pieces
            if piece.source in ("copy", "peer") and piece.rank == rank
        )
        assert read <= limit


def test_two_ranks_that_swap_layers_do_it_in_one_round() -> None:
    moves = [
        Move(0, 1, Piece("a", 4, 0, "peer", 0, 0)),
        Move(1, 0, Piece("b", 4, 0, "peer", 1, 0)),
        Move(2, 0, Piece("c", 4, 8, "host", -1, 0)),
    ]
    rounds = make_rounds(moves, 2, groups={0: 0, 1: 0, 2: 1}, limit=4, to_host=lambda move: [move])
    assert [found.layers for found in rounds] == [(0, 1), (2,)]


def test_a_chain_changes_from_its_reading_end_and_a_cycle_beyond_the_limit_is_cut() -> None:
    # Layer i goes where layer i + 1 lay: the last must leave first.
    chain = [Move(i, 0, Piece(f"{i}", 4, 4 * (i + 1), "copy", 0, 4 * i)) for i in range(3)]
    groups = {0: 0, 1: 1, 2: 2}

    def to_host(move: Move) -> list[Move]:
        return [move._replace(piece=move.piece._replace(source="host", rank=-1, offset=0))]

    rounds = make_rounds(chain, 1, groups=groups, limit=4, to_host=to_host)
    assert [found.layers for found in rounds] == [(2,), (1,), (0,)]
    assert {p.source for found in rounds for p in found.pieces[0]} == {"copy"}
    # The last goes where the first lay: a circle of 12 bytes, of which 4 may be kept aside.
    circle = [*chain[:2], Move(2, 0, Piece("2", 4, 0, "copy", 0, 8))]
    assert len(make_rounds(circle, 1, groups=groups, limit=12, to_host=to_host)) == 1
    rounds = make_rounds(circle, 1, groups=groups, limit=4, to_host=to_host)
    # In order of group layer 1 reads what 0 has written over, and 2 what 1 has.
    sources = {p.param: p.source for found in rounds for p in found.pieces[0]}
    assert sources == {"0": "copy", "1": "host", "2": "host"}
