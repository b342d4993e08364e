"""What a batch does between its layers: waits for weights that are still on their way, and begins
to store the KV of layers that have run while those behind them do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from seesaw.layout import Range
from seesaw.layout.kv import STORE_LAYERS
from seesaw.scheduler.output import SchedulerOutput, Store


class BetweenLayers:
    """For a batch that runs `layers`. `wait(layer)` where weights are on their way; `store(store,
    layers)` for each of `stores`, whose KV the batch completes."""

    def __init__(
        self,
        layers: Range,
        wait: Callable[[int], None] | None,
        stores: Sequence[Store],
        store: Callable[[Store, Range], None],
    ) -> None:
        self._wait = wait
        self._stores = stores
        self._store = store
        self._first = layers.start  # of those that are not stored
        self._stop = layers.stop

    @property
    def is_needed(self) -> bool:
        return self._wait is not None or bool(self._stores)

    def __call__(self, layer: int) -> None:
        """Before it runs; those below it have, or on a GPU will have."""
        if self._wait is not None:
            self._wait(layer)
        if layer - self._first == STORE_LAYERS:
            self._store_below(layer)

    def finish(self) -> None:
        """All layers have run."""
        self._store_below(self._stop)

    def _store_below(self, layer: int) -> None:
        part = Range(self._first, layer)
        self._first = layer
        for store in self._stores:
            self._store(store, part)


def split_stores(step: SchedulerOutput) -> tuple[list[Store], list[list[Store]]]:
    """(stores of requests that have no row in the step, which may begin at once; those of requests
    with rows in each batch, which complete what is stored)."""
    waiting = {store.request_id: store for store in step.stores}
    by_batch = [
        [waiting.pop(row.request_id) for row in batch.rows if row.request_id in waiting]
        for batch in step.batches
    ]
    return list(waiting.values()), by_batch
