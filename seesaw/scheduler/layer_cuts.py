"""Rows of a batch by the layers that they run: between which layers the same rows run, and which
ones go from a pipeline stage to the next.

Plain data for those who compute steps and those who say how long they take; where a row's layers
end is the policy's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise
from operator import itemgetter
from typing import NamedTuple

from seesaw.scheduler.output import Row

_LAYERS = itemgetter(Row._fields.index("layer_start"), Row._fields.index("layer_stop"))


class Band(NamedTuple):
    """Rows one after another in a batch that run the same layers."""

    layer_start: int
    layer_stop: int
    rows: list[Row]

    @property
    def num_tokens(self) -> int:
        return sum(row.num_tokens for row in self.rows)

    def crosses(self, layer: int) -> bool:
        """Its hidden states go over in this step from the ranks with the layers below `layer` to
        those with the layers from there on, if these are not the same ones. They were left before
        `layer` by an earlier step where the band starts there, and stay before it where it stops
        there."""
        return self.layer_start <= layer < self.layer_stop


class Cut(NamedTuple):
    """Layers that the same bands run. `bands` are places in the list of all of them."""

    layer_start: int
    layer_stop: int
    bands: list[int]


def bands_of(rows: Sequence[Row]) -> list[Band]:
    """In the order of the batch."""
    return [Band(first, stop, list(group)) for (first, stop), group in groupby(rows, _LAYERS)]


def cut_layers(bands: Sequence[Band], start: int, stop: int) -> list[Cut]:
    """Layers start .. stop where a band begins or ends among them; those that no band runs are left
    out."""
    ends = {end for band in bands for end in band[:2] if start < end < stop}
    cuts = []
    for first, last in pairwise(sorted({start, *ends, stop})):
        active = [
            index
            for index, band in enumerate(bands)
            if band.layer_start <= first and last <= band.layer_stop
        ]
        if active:
            cuts.append(Cut(first, last, active))
    return cuts
