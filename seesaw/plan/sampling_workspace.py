"""How many rows of logits `ops/sample` and `ops/logprobs` work on at once, and what that takes:
copies of [rows, vocabulary] are what they cost."""

from __future__ import annotations

SAMPLE_BYTES = 64 * 2**20
"""Most bytes of work space of `sample` or `logprobs` (more only where a single row needs it)."""
_BYTES_EACH = 40
"""Of one logit of a row that is sorted whole: copies, ids, float64 sums."""


def rows_at_once(vocab: int) -> int:
    return max(1, SAMPLE_BYTES // (vocab * _BYTES_EACH))


def sample_workspace_bytes(vocab: int) -> int:
    """Upper bound of what `sample` or `logprobs` allocate, whatever the number of rows."""
    return rows_at_once(vocab) * vocab * _BYTES_EACH
