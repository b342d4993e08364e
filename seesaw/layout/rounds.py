"""In which order layers may change where ranks read from arenas that are being rewritten.

Owns the dependency graph of a `ReshardPlan`, its strongly connected components (rounds) and the
bound on what a round keeps aside. Knows no format.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from typing import NamedTuple

from seesaw.layout.reshard import Piece, Round

READS = ("copy", "peer")
"""Sources that lie in an arena."""


class Move(NamedTuple):
    """A piece of `layer` on its way into the arena of `rank`."""

    layer: int
    rank: int
    piece: Piece


ToHost = Callable[[Move], Sequence[Move]]
"""The same bytes from the host image."""


def make_rounds(
    moves: Sequence[Move],
    num_ranks: int,
    *,
    groups: Mapping[int, int],
    limit: int,
    to_host: ToHost,
) -> tuple[Round, ...]:
    """Rounds such that nothing is read after a write over it; single layers in order where nothing
    else is asked for.

    No round reads more than `limit` bytes of one rank's arena. Layers that would, since they must
    change together, change by their number in `groups` instead, and what that order destroys
    before it is read comes from the host; so does what one group reads beyond the limit.
    """
    found = _components(_before(moves))
    large = set().union(*_beyond(found, moves, limit))
    if large:
        writes = _writes(moves)
        moves = [
            part
            for move in moves
            for part in (_cut(move, writes, groups, to_host) if move.layer in large else (move,))
        ]
        moves = _trim(_components(_before(moves)), moves, limit, to_host)
        found = _components(_before(moves))
    return _rounds(found, moves, num_ranks)


def _rounds(
    components: Sequence[Sequence[int]], moves: Sequence[Move], num_ranks: int
) -> tuple[Round, ...]:
    pieces: defaultdict[tuple[int, int], list[Piece]] = defaultdict(list)
    for move in moves:
        pieces[move.layer, move.rank].append(move.piece)
    return tuple(
        Round(
            tuple(layers),
            tuple(
                tuple(piece for layer in layers for piece in pieces[layer, rank])
                for rank in range(num_ranks)
            ),
        )
        for layers in components
    )


class _Write(NamedTuple):
    start: int
    stop: int
    layer: int


def _writes(moves: Sequence[Move]) -> Mapping[int, Sequence[_Write]]:
    """By rank what is written to its arena, in order of address; no two share a byte."""
    found: defaultdict[int, list[_Write]] = defaultdict(list)
    for layer, rank, piece in moves:
        if piece.source != "resident":
            found[rank].append(_Write(piece.target, piece.target + piece.size, layer))
    return {rank: sorted(writes) for rank, writes in found.items()}


def _over(piece: Piece, writes: Mapping[int, Sequence[_Write]]) -> Iterator[_Write]:
    """The writes over what `piece` reads, in order of address."""
    if piece.source not in READS:
        return
    on_rank = writes.get(piece.rank, ())
    stop = piece.offset + piece.size
    first = bisect_right(on_rank, piece.offset, key=lambda write: write.start)
    for at in range(max(0, first - 1), len(on_rank)):
        if on_rank[at].start >= stop:
            return
        if on_rank[at].stop > piece.offset:
            yield on_rank[at]


def _before(moves: Sequence[Move]) -> Mapping[int, Set[int]]:
    """For each layer those that must change no later, since its writes destroy what they read."""
    writes = _writes(moves)
    before: dict[int, set[int]] = {move.layer: set() for move in moves}
    for move in moves:
        for write in _over(move.piece, writes):
            if write.layer != move.layer:
                before[write.layer].add(move.layer)
    return before


def _snapshots(components: Sequence[Collection[int]], moves: Sequence[Move]) -> list[Counter[int]]:
    """What each component reads, by the rank whose arena it is."""
    component_of = {layer: at for at, layers in enumerate(components) for layer in layers}
    read: list[Counter[int]] = [Counter() for _ in components]
    for layer, _, piece in moves:
        if piece.source in READS:
            read[component_of[layer]][piece.rank] += piece.size
    return read


def _beyond(
    components: Sequence[Collection[int]], moves: Sequence[Move], limit: int
) -> list[Collection[int]]:
    """Components that read more than `limit` of one arena."""
    snapshots = _snapshots(components, moves)
    return [
        layers
        for layers, read in zip(components, snapshots, strict=True)
        if max(read.values(), default=0) > limit
    ]


def _cut(
    move: Move,
    writes: Mapping[int, Sequence[_Write]],
    groups: Mapping[int, int],
    to_host: ToHost,
) -> Iterator[Move]:
    """`move` in parts: those that earlier groups destroy come from the host."""
    piece = move.piece

    def part(start: int, stop: int) -> Move:
        target = piece.target + start - piece.offset
        return move._replace(piece=piece._replace(size=stop - start, target=target, offset=start))

    at, stop = piece.offset, piece.offset + piece.size
    for write in _over(piece, writes):
        if groups[write.layer] < groups[move.layer]:
            start, end = max(at, write.start), min(stop, write.stop)
            if start > at:
                yield part(at, start)
            yield from to_host(part(start, end))
            at = end
    if at < stop:
        yield part(at, stop)


def _trim(
    components: Sequence[Collection[int]], moves: Sequence[Move], limit: int, to_host: ToHost
) -> list[Move]:
    """`moves` with what a component reads beyond the limit taken from the host."""
    component_of = {layer: at for at, layers in enumerate(components) for layer in layers}
    read: Counter[tuple[int, int]] = Counter()
    kept: list[Move] = []
    for move in moves:
        if move.piece.source in READS:
            place = component_of[move.layer], move.piece.rank
            if read[place] + move.piece.size > limit:
                kept += to_host(move)
                continue
            read[place] += move.piece.size
        kept.append(move)
    return kept


def _components(before: Mapping[int, Set[int]]) -> list[list[int]]:
    """Strongly connected components, each sorted and after all that must come before any of it;
    low layers first where there is a choice (Tarjan's algorithm, without recursion)."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    pending: list[int] = []
    components: list[list[int]] = []
    for root in sorted(before):
        path = [] if root in index else [(root, iter(sorted(before[root])))]
        while path:
            node, others = path[-1]
            if node not in index:
                index[node] = low[node] = len(index)
                pending.append(node)
            for other in others:
                if other not in index:
                    path.append((other, iter(sorted(before[other]))))
                    break
                low[node] = min(low[node], low[other])
            else:
                path.pop()
                if path:
                    parent = path[-1][0]
                    low[parent] = min(low[parent], low[node])
                if low[node] == index[node]:
                    at = pending.index(node)
                    components.append(sorted(pending[at:]))
                    del pending[at:]
                    for member in components[-1]:
                        low[member] = len(before)  # closed: no later node belongs to it
    return components
