"""What a step asks of every layer: counts, from its rows.

Costs are linear in these counts, so layers with and without a sliding window are averaged here, and
a step is described once for all its layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from seesaw.families.spec import ModelSpec


@dataclass(slots=True)
class Work:
    """Counts over the rows of one step.

    `num_tokens` positions computed in `num_rows` rows, of which `num_sampled` draw a token;
    `pairs` (query, key) and `chunk_keys` keys of rows with several queries; `decode_keys` keys that
    rows with one query read. Keys and pairs per layer, averaged over the model's layers.
    """

    num_tokens: int = 0
    num_rows: int = 0
    num_sampled: int = 0
    pairs: float = 0.0
    chunk_keys: float = 0.0
    decode_keys: float = 0.0


class WorkCounter:
    """Counts the work of steps of one model."""

    def __init__(self, spec: ModelSpec) -> None:
        kinds = Counter(layer.sliding_window for layer in spec.layers)
        self._full = kinds.pop(None, 0) / len(spec.layers)
        self._windows = [
            (window, count / len(spec.layers))
            for window, count in kinds.items()
            if window is not None
        ]

    def count(self, rows: Iterable[tuple[int, int, bool]]) -> Work:
        """`rows`: (queries, keys up to and with the last query, whether it draws a token)."""
        tokens = num_rows = sampled = 0
        pairs = chunk_keys = decode_keys = 0
        windows = self._windows
        extra = Work()
        for queries, keys, samples in rows:
            num_rows += 1
            tokens += queries
            sampled += samples
            if queries == 1:
                decode_keys += keys
            else:
                chunk_keys += keys
                pairs += queries * keys - queries * (queries - 1) // 2
            if windows:
                self._count_windows(queries, keys, extra)
        full = self._full
        return Work(
            tokens,
            num_rows,
            sampled,
            full * pairs + extra.pairs,
            full * chunk_keys + extra.chunk_keys,
            full * decode_keys + extra.decode_keys,
        )

    def _count_windows(self, queries: int, keys: int, into: Work) -> None:
        for window, share in self._windows:
            if queries == 1:
                into.decode_keys += share * min(keys, window)
                continue
            into.chunk_keys += share * min(keys, queries + window - 1)
            # The first queries may see fewer keys than the window holds.
            before = keys - queries
            growing = max(0, min(queries, window - before - 1))
            pairs = growing * before + growing * (growing + 1) // 2 + (queries - growing) * window
            into.pairs += share * pairs
