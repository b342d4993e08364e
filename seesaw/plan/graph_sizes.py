"""Which numbers of rows decode steps are recorded for as CUDA graphs, and what that may take."""

from __future__ import annotations

_SMALL = (1, 2, 4, 8, 16, 24, 32)
_STEP = 16
"""Between larger sizes: what padding costs is at most this many rows' share of KV and sampling,
while all rows share the weights that are read."""

RECORDED_BYTES = 256 * 2**20
"""Of device memory for the launches themselves; measured while they are recorded, and when they
take more no further size is."""


def graph_size(num_rows: int, most_rows: int) -> int:
    """Rows that a step of `num_rows` is padded to."""
    assert 1 <= num_rows <= most_rows, f"{num_rows} rows of at most {most_rows}"
    size = next((size for size in _SMALL if size >= num_rows), -(-num_rows // _STEP) * _STEP)
    return min(size, most_rows)
