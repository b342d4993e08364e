"""Where the bytes of a stored parameter lie in a rank's tensor, and what two tensors share.

Set arithmetic on byte runs; knows no address.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from seesaw.layout.format import ByteRun, StoredParam, WeightFormat
from seesaw.layout.ranges import RankRanges


class Span(NamedTuple):
    """`size` bytes of a parameter from `start` on lie at `at` of the rank's tensor."""

    start: int
    size: int
    at: int


class Shared(NamedTuple):
    """`size` bytes of a parameter lie at `at` of one tensor and at `other_at` of another."""

    start: int
    size: int
    at: int
    other_at: int


def moves(param: StoredParam) -> bool:
    """Whether a change of layout may change what a rank holds of `param`: true for what tensor
    parallelism cuts in a layer. All else stays, held for every layout of the rank."""
    return param.layer is not None and param.cut != "none"


def spans(fmt: WeightFormat, param: StoredParam, ranges: RankRanges) -> tuple[Span, ...]:
    """What a rank holds of `param`, in the order of its tensor; empty where it holds nothing."""
    return tuple(_spans(fmt.runs(param, ranges))) if fmt.holds(param, ranges) else ()


def _spans(runs: Sequence[ByteRun]) -> Iterator[Span]:
    at = 0
    for run in runs:
        yield Span(run.start, run.size, at)
        at += run.size


def moving_bytes(fmt: WeightFormat, ranges: RankRanges) -> int:
    """Bytes of what moves that a rank with `ranges` holds. Layers are alike."""
    layer = ranges.layers.start
    params = (param for param in fmt.params if param.layer == layer and moves(param))
    of_layer = sum(run.size for param in params for run in fmt.runs(param, ranges))
    return of_layer * ranges.layers.size


def shared(one: Sequence[Span], other: Sequence[Span]) -> Iterator[Shared]:
    """What both hold, one run of both at a time, in order; spans of either are in order too."""
    others = iter(other)
    b = next(others, None)
    for a in one:
        stop = a.start + a.size
        while b is not None and b.start < stop:
            start = max(a.start, b.start)
            size = min(stop, b.start + b.size) - start
            if size > 0:
                yield Shared(start, size, a.at + start - a.start, b.at + start - b.start)
            if b.start + b.size > stop:
                break  # the next of `one` may have more of it
            b = next(others, None)


def without(wanted: Sequence[Span], held: Sequence[Span]) -> list[Span]:
    """The bytes of `wanted` that are in none of `held`, in order; so are both of these."""
    left: list[Span] = []
    others = iter(held)
    b = next(others, None)
    for a in wanted:
        start, stop = a.start, a.start + a.size
        while b is not None and b.start < stop:
            if b.start > start:
                left.append(Span(start, b.start - start, a.at + start - a.start))
            start = max(start, b.start + b.size)
            if b.start + b.size > stop:
                break
            b = next(others, None)
        if start < stop:
            left.append(Span(start, stop - start, a.at + start - a.start))
    return left
