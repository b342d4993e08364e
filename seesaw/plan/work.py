"""What a step asks of every layer: counts, from its rows.

Costs are linear in these counts, so layers with and without a sliding window are averaged here, and
a step is described once for all its layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from seesaw.families.spec import ModelSpec


@dataclass(slots=True)
class Work:
    """Counts over the rows of one step.

    `num_tokens` positions computed in `num_rows` rows, of which `num_sampled` draw a token;
    `pairs` (query, key) and `chunk_keys` keys of rows with several queries; `decode_keys` keys that
    the `num_decodes` rows with one query read. Keys and pairs per layer, averaged over the model's
    layers.
    """

    num_tokens: int = 0
    num_rows: int = 0
    num_sampled: int = 0
    pairs: float = 0.0
    chunk_keys: float = 0.0
    decode_keys: float = 0.0
    num_decodes: int = 0


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
        columns = list(zip(*rows, strict=True))
        if not columns:
            return Work()
        queries, keys, samples = columns
        before = [last - count for count, last in zip(queries, keys, strict=True)]
        return self.count_columns(queries, before, sum(samples))

    def count_columns(
        self, queries: Sequence[int], before: Sequence[int], num_sampled: int
    ) -> Work:
        """The same by columns, which is many times faster: queries of each row, and the positions
        before the first of them."""
        tokens, num_rows = sum(queries), len(queries)
        pairs = chunk_keys = 0
        num_decodes, decode_keys = num_rows, sum(before) + num_rows
        if tokens != num_rows:
            for count, start in zip(queries, before, strict=True):
                if count != 1:
                    num_decodes -= 1
                    decode_keys -= start + 1
                    chunk_keys += start + count
                    pairs += count * start + count * (count + 1) // 2
        full = self._full
        work = Work(
            tokens, num_rows, num_sampled, full * pairs, full * chunk_keys, full * decode_keys,
            num_decodes,
        )  # fmt: skip
        if self._windows:
            for count, start in zip(queries, before, strict=True):
                self._count_windows(count, start + count, work)
        return work

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
