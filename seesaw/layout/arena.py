"""`ArenaPlan`: the address of every tensor of a rank in its arena, for each layout it runs.

Owns addresses, all fixed before anything is loaded; what moves between them is a `ReshardPlan`.
What stays (embedding, head, norms, biases that are not cut) comes first. Behind it the tensors of
both layouts share one space, where bytes that both need have one address if the room allows.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from seesaw.layout.format import ByteRun, Cut, StoredParam, WeightFormat
from seesaw.layout.ranges import RankRanges
from seesaw.layout.spans import Span, moves, shared, spans
from seesaw.layout.stored import align

VECTOR_BYTES = 16
"""Kernels read so much at once: a tensor at an equal address starts on a multiple of this."""


class Resident(NamedTuple):
    """What never moves: bytes `run` of `param`, at `offset` of the arena."""

    param: str
    run: ByteRun
    offset: int


@dataclass(frozen=True, slots=True)
class ArenaPlan:
    """Arena of one rank. `offsets[layout][name]`: where the tensor of that layout begins, in bytes;
    without the names that the rank does not hold in it."""

    nbytes: int
    offsets: tuple[Mapping[str, int], ...]
    residents: tuple[Resident, ...]


def layer_bytes(fmt: WeightFormat) -> int:
    """Bytes of the model's largest layer, whole: the slack of an arena, and of staging."""
    sizes: Counter[int] = Counter()
    for param in fmt.params:
        if param.layer is not None:
            sizes[param.layer] += align(fmt.nbytes(param))
    return max(sizes.values(), default=0)


def plan_arena(fmt: WeightFormat, layouts: Sequence[Sequence[RankRanges]], rank: int) -> ArenaPlan:
    """Addresses for `rank` of a replica that runs one or two layouts, each given as the ranges of
    all its ranks. What moves takes no more than the larger shard and one layer."""
    if not 1 <= len(layouts) <= 2:
        raise ValueError(f"an arena holds one layout or two, got {len(layouts)}")
    own = [ranges[rank] for ranges in layouts]
    offsets: list[dict[str, int]] = [{} for _ in own]
    held = [_Holdings(fmt, ranges) for ranges in own]
    residents, start = _place_residents(fmt, held, offsets)
    kinds = _kinds(fmt, held)
    sizes = [
        sum(align(tensor.size) for kind in kinds for tensor in kind[side].values())
        for side in range(len(own))
    ]
    sweep = _Sweep(start, sizes, max(sizes) + layer_bytes(fmt), offsets)
    places = [positions(ranges) for ranges in layouts]
    for kind in kinds:
        sweep.place(kind, places)
    return ArenaPlan(max(sweep.ends), tuple(offsets), residents)


class _Holdings:
    """What the rank holds in one layout: layers are alike, so spans are worked out once."""

    def __init__(self, fmt: WeightFormat, ranges: RankRanges) -> None:
        self._fmt, self._ranges = fmt, ranges
        self._known: dict[tuple[Cut, tuple[int, ...]], tuple[Span, ...]] = {}

    def spans(self, param: StoredParam) -> tuple[Span, ...]:
        if not self._fmt.holds(param, self._ranges):
            return ()
        alike = (param.cut, param.shape)
        if alike not in self._known:
            self._known[alike] = spans(self._fmt, param, self._ranges)
        return self._known[alike]


def _place_residents(
    fmt: WeightFormat, own: Sequence[_Holdings], offsets: Sequence[dict[str, int]]
) -> tuple[tuple[Resident, ...], int]:
    """Each once, for all layouts: of the vocabulary all rows from the first to the last needed."""
    residents: list[Resident] = []
    end = 0
    for param in fmt.params:
        if moves(param):
            continue
        held = {side: holdings.spans(param) for side, holdings in enumerate(own)}
        needed = [span for found in held.values() for span in found]
        if not needed:
            continue
        start = min(span.start for span in needed)
        size = max(span.start + span.size for span in needed) - start
        residents.append(Resident(param.name, ByteRun(start, size), end))
        for side, found in held.items():
            assert len(found) <= 1, f"{param.name}: what stays is one run, got {found}"
            for span in found:
                offsets[side][param.name] = end + span.start - start
        end += align(size)
    return tuple(residents), end


class _Tensor(NamedTuple):
    param: StoredParam
    size: int
    spans: tuple[Span, ...]


_Held = Sequence[Mapping[int, _Tensor]]
"""Tensors of one kind by layer, for each layout."""


def _kinds(fmt: WeightFormat, own: Sequence[_Holdings]) -> list[_Held]:
    """What moves, by kind (`mlp.down_proj.weight`): tensors of a kind are cut alike, so that what
    one layout leaves free between them fits those of the other. Large ones first; any fixed order
    would do."""
    kinds: dict[str, list[dict[int, _Tensor]]] = {}
    for param in fmt.params:
        if param.layer is None or not moves(param):
            continue
        kind = param.name.split(f".{param.layer}.", 1)[-1]
        held = kinds.setdefault(kind, [{} for _ in own])
        for side, holdings in enumerate(own):
            if found := holdings.spans(param):
                size = sum(span.size for span in found)
                held[side][param.layer] = _Tensor(param, size, found)

    def largest(held: _Held) -> int:
        return max((tensor.size for side in held for tensor in side.values()), default=0)

    return sorted(kinds.values(), key=largest, reverse=True)


def positions(ranges: Sequence[RankRanges]) -> dict[int, int]:
    """For each layer, the how-manieth of its stage it is."""
    stages = {held.layers for held in ranges}
    return {layer: layer - stage.start for stage in stages for layer in range(*stage)}


class _Sweep:
    """Places tensors from low to high addresses, each layout behind its own end.

    Whatever is placed, the end of a layout and what is left of it stay within the limit: a gap
    that an equal address would need is made only where that holds.
    """

    def __init__(
        self, start: int, sizes: Sequence[int], room: int, offsets: Sequence[dict[str, int]]
    ) -> None:
        self.ends = [start for _ in sizes]
        self._left = list(sizes)
        self._limit = start + room
        self._offsets = offsets

    def place(self, held: _Held, places: Sequence[Mapping[int, int]]) -> None:
        """All tensors of one kind."""
        shifts: dict[int, int] = {}
        if len(held) == 2:
            for layer in sorted(held[0].keys() & held[1].keys()):
                if (shift := _shift(held[0][layer], held[1][layer])) is not None:
                    shifts[layer] = shift
        queues: list[deque[_Tensor]] = []
        for side, tensors in enumerate(held):
            # Layers of equal position in the other layout's stages swap places with each other
            # on all ranks, which keeps the rounds of a plan small.
            other = places[-1 - side]
            layers = sorted(tensors.keys() - shifts.keys(), key=lambda layer: (other[layer], layer))
            queues.append(deque(tensors[layer] for layer in layers))
        for layer, shift in shifts.items():
            self._fill(queues, shift)
            self._place_pair(held[0][layer], held[1][layer], shift)
        for side, queue in enumerate(queues):
            while queue:
                self._append(side, queue.popleft())
        # The next kind begins level, so that its tensors swap places with its own only.
        self._skip_to([max(self.ends)] * len(self.ends))

    def _fill(self, queues: Sequence[deque[_Tensor]], shift: int) -> None:
        """Append to the layout that lags while that brings a pair `shift` apart closer."""
        while True:
            lead = self.ends[1] - shift - self.ends[0]
            side = 0 if lead > 0 else 1
            if not queues[side]:
                return
            size = align(queues[side][0].size)
            if abs(abs(lead) - size) >= abs(lead):
                return
            self._append(side, queues[side].popleft())

    def _place_pair(self, one: _Tensor, other: _Tensor, shift: int) -> None:
        start = align(max(self.ends[0], self.ends[1] - shift))
        self._skip_to([start, start + shift])
        self._append(0, one)
        self._append(1, other)

    def _skip_to(self, starts: Sequence[int]) -> None:
        """Leave a gap in each layout, unless that would drive one over the limit."""
        ends = [align(start) + left for start, left in zip(starts, self._left, strict=True)]
        if max(ends) <= self._limit:
            self.ends[:] = starts

    def _append(self, side: int, tensor: _Tensor) -> None:
        start = self.ends[side]
        self._offsets[side][tensor.param.name] = start
        self.ends[side] = align(start + tensor.size)
        self._left[side] -= align(tensor.size)


def _shift(one: _Tensor, other: _Tensor) -> int | None:
    """How far behind `one` must `other` start for most of what both hold to have one address.
    None where they share nothing, or a start would not suit kernels."""
    gains: Counter[int] = Counter()
    for part in shared(one.spans, other.spans):
        gains[part.at - part.other_at] += part.size
    smaller = min(one.size, other.size)
    # Of equal gains one that leaves whole tensors of the smaller size beside it.
    ranked = sorted(gains, key=lambda shift: (-gains[shift], shift % smaller != 0, abs(shift)))
    return next((shift for shift in ranked if shift % VECTOR_BYTES == 0), None)
