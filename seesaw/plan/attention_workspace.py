"""How much memory `ops/paged_attention` takes beside its output, and the bounds that keep it small.

Arithmetic only: the op groups its rows by these bounds, and the memory plan sets aside what they
allow. Triton's kernels gather nothing; they take memory for parts of rows alone.
"""

from __future__ import annotations

from dataclasses import dataclass

GATHER_BYTES = 8 * 2**20
"""Most bytes of keys and values gathered at once (more only where one KV head of one row needs it):
small enough to be read back from a cache, large enough to keep all cores busy."""
SCORE_BYTES = 32 * 2**20
"""Most bytes of masks and score matrices at once (more only where MIN_QUERIES of a row need it)."""
MIN_QUERIES = 16
MAX_WASTE = 0.25
"""Padding of a group, as a share of its queries and of its (query, key) pairs, that is always
allowed; beyond it MAX_PADDING queries per group and one block of keys per row."""
MAX_PADDING = 64


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What does not change from step to step. `sliding_window` in tokens, the query's own included.

    `unfused`: torch writes scores out (with a soft cap, or a mask on CUDA); else only masks take
    memory.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    element_bytes: int
    sliding_window: int | None = None
    unfused: bool = False

    @property
    def score_bytes(self) -> int:
        """Per (query, key): of a mask; unfused also of each head's score, twice in float32."""
        return 16 * self.num_heads if self.unfused else 8

    def queries_at_once(self, num_rows: int, num_keys: int) -> int:
        """Queries per row for which masks and scores stay bounded."""
        most = max(MIN_QUERIES, SCORE_BYTES // (num_rows * num_keys * self.score_bytes))
        if self.sliding_window is None:
            return most
        return min(most, max(self.sliding_window, 4 * MIN_QUERIES))  # few queries see few keys

    def kv_bytes(self, num_keys: int, num_heads: int) -> int:
        """K and V of `num_keys` tokens in `num_heads` heads."""
        return 2 * num_keys * num_heads * self.head_dim * self.element_bytes


def scratch_bytes(shape: AttentionShape, max_seq_len: int) -> int:
    """Upper bound of what an `AttentionPlan` holds for gathered keys and values."""
    return max(GATHER_BYTES, shape.kv_bytes(round_up(max_seq_len, shape.block_size), 1))


def workspace_bytes(shape: AttentionShape, max_queries: int, max_seq_len: int) -> int:
    """Upper bound of what attention allocates beside its output and its plan's scratch, for at most
    `max_queries` tokens in a step and `max_seq_len` tokens in a row.
    """
    widened = 0
    if shape.unfused:  # torch repeats K and V for the query heads of a group, or widens them
        group = shape.num_heads // shape.num_kv_heads
        widened = scratch_bytes(shape, max_seq_len) * max(2, group)
    scores = max(SCORE_BYTES, MIN_QUERIES * max_seq_len * shape.score_bytes)
    padded_queries = int((1 + MAX_WASTE) * max_queries) + MAX_PADDING
    q_and_out = 3 * padded_queries * shape.num_heads * shape.head_dim * shape.element_bytes
    return widened + scores + q_and_out


SPLIT_PROGRAMS = 6144
"""Most programs that share rows among them in `kernels/paged_decode`: twice 16 on each of 192
SMs, more than any GPU has that there is a machine file of."""


def split_workspace_bytes(shape: AttentionShape, max_rows: int) -> int:
    """Upper bound of the parts of rows that Triton's kernels write before they are merged, for at
    most `max_rows` rows: of each program and query head an output and a log-sum-exp in float32."""
    parts = SPLIT_PROGRAMS + max_rows * shape.num_kv_heads
    return parts * shape.num_heads // shape.num_kv_heads * (shape.head_dim + 1) * 4


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
