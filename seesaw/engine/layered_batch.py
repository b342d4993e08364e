"""A batch on one rank by the layers that its rows run: which rows run together, whose hidden states
go on with others, and whose stay until a later step.

The batch is cut where rows begin or end (`scheduler/layer_cuts.py`); between two cuts the same rows
run, in one call of the decoder. Puts hidden states together and takes them apart, computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from seesaw.engine.input_batch import RowArrays, gather_rows
from seesaw.engine.request_state import RequestState
from seesaw.layout import Range
from seesaw.scheduler.layer_cuts import Cut, bands_of, cut_layers
from seesaw.scheduler.output import Row

# Shape letters: T tokens of some bands, H hidden.


class LayeredBatch:
    """`rows` on a rank that has `layers`. `cuts` are what it computes, one after another. What
    earlier steps left is taken from `requests` where it goes on, and `keep` puts there what stays.
    """

    def __init__(
        self, rows: Sequence[Row], layers: Range, requests: Mapping[str, RequestState]
    ) -> None:
        self._bands = bands_of(rows)
        self._layers = layers
        self._requests = requests
        self._hidden: dict[int, torch.Tensor] = {}
        self.cuts = cut_layers(self._bands, *layers)

    @property
    def is_uncut(self) -> bool:
        """All of its rows run all layers of the rank."""
        return len(self._bands) == 1 and self._bands[0][:2] == self._layers

    def gather(self, cut: Cut, block_size: int) -> RowArrays:
        """Its rows in the order of the batch; their tokens where layer 0 is to embed them."""
        rows = self._bands[cut.bands[0]].rows
        if len(cut.bands) > 1:
            rows = [row for index in cut.bands for row in self._bands[index].rows]
        return gather_rows(rows, self._requests, block_size, embeds=cut.layer_start == 0)

    def handed_over(self) -> list[int]:
        """Bands that go on in this step on the ranks with the layers behind these."""
        return [i for i, band in enumerate(self._bands) if band.crosses(self._layers.stop)]

    def take(self, bands: Sequence[int]) -> torch.Tensor:
        """Hidden states `[T, H]` of some bands, one after another, which are the caller's."""
        parts = [part for index in bands for part in self._take(index)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def put(self, bands: Sequence[int], hidden_TH: torch.Tensor) -> None:
        """What the layers of a cut made of them."""
        sizes = [self._bands[index].num_tokens for index in bands]
        self._hidden.update(zip(bands, hidden_TH.split_with_sizes(sizes), strict=True))

    def keep(self) -> None:
        """What was put here and not taken again, for the steps that go on with it."""
        for index, hidden_TH in self._hidden.items():
            rows = self._bands[index].rows
            parts = hidden_TH.split_with_sizes([row.num_tokens for row in rows])
            for row, part in zip(rows, parts, strict=True):
                self._requests[row.request_id].hidden_TH = part

    def _take(self, index: int) -> list[torch.Tensor]:
        if index in self._hidden:
            return [self._hidden.pop(index)]
        return [self._requests[row.request_id].take_hidden() for row in self._bands[index].rows]
