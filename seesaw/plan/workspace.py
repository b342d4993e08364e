"""How much memory a step needs beside weights and KV: what a device's memory budget sets aside.

A sum of what is alive at once in `models/decoder.py`, the ops and the copies of KV; a test compares
it with the measured peak.
"""

from __future__ import annotations

from seesaw.families.spec import ModelSpec
from seesaw.layout.parallel import ParallelLayout
from seesaw.layout.ranges import RankRanges, rank_ranges
from seesaw.plan.attention_workspace import AttentionShape, scratch_bytes, split_workspace_bytes
from seesaw.plan.attention_workspace import workspace_bytes as attention_workspace_bytes
from seesaw.plan.graph_sizes import RECORDED_BYTES
from seesaw.plan.machine import Kind
from seesaw.plan.sampling_workspace import sample_workspace_bytes

LIBRARY_BYTES = 32 * 2**20
"""What oneDNN or cuBLAS take for themselves in a matrix product."""
MAX_HANDOVERS = 2
"""Hidden states that a stage may have under way to the next one; held until they are received."""
KV_SLOTS = 3
"""Batches of KV under way to the host tier, and from it: one in each of two streams, and one that
is being prepared."""
KV_BATCH_BYTES = 16 * 2**20
"""Of such a batch, or one tier block's where that is more: tenths of a millisecond on a bus."""
COPY_THREADS = 1
"""That copy KV, of each rank, beside those that compute: memory is the limit, not the thread."""


def attention_shape(
    spec: ModelSpec,
    ranges: RankRanges,
    sliding_window: int | None,
    block_size: int,
    element_bytes: int,
    kind: Kind,
) -> AttentionShape:
    return AttentionShape(
        num_heads=ranges.query_heads.size,
        num_kv_heads=ranges.kv_heads.size,
        head_dim=spec.head_dim,
        block_size=block_size,
        element_bytes=element_bytes,
        sliding_window=sliding_window,
        unfused=spec.attn_soft_cap is not None or kind == "cuda",
    )


def workspace_bytes(
    spec: ModelSpec,
    *,
    num_tokens: int,
    num_sampled: int,
    max_model_len: int,
    block_size: int,
    element_bytes: int,
    kind: Kind,
    ranges: RankRanges | None = None,
    triton: bool = False,
) -> int:
    """Upper bound of the bytes that one step allocates on a rank that holds `ranges` (the whole
    model without), sampling included.

    num_tokens: most tokens of a step; num_sampled: most rows that sample; max_model_len: most
    tokens of a row with its cached ones; element_bytes: of what is computed; kind: of the device;
    triton: its kernels compute.
    """
    size, hidden = element_bytes, spec.hidden_size
    ranges = ranges or rank_ranges(ParallelLayout(), spec, 0)
    q_columns = ranges.query_heads.size * spec.head_dim
    qkv_columns = q_columns + 2 * ranges.kv_heads.size * spec.head_dim
    # residual, delta, normed, and inside a norm two float32 copies
    stream = num_tokens * hidden * (4 * size + 8)
    last_stage = ranges.layers.stop == spec.num_hidden_layers
    if not last_stage:
        stream += MAX_HANDOVERS * num_tokens * hidden * size
    # qkv; q and k normed (in float32 on the way), rolled, rotated; attention's output
    attention = num_tokens * (qkv_columns * 3 * size + q_columns * size)
    if spec.qk_norm:
        attention += num_tokens * qkv_columns * (size + 8)
    shape = attention_shape(spec, ranges, None, block_size, size, kind)
    scratch = 0
    if triton:
        attention += split_workspace_bytes(shape, min(num_sampled, num_tokens))
    else:
        attention += attention_workspace_bytes(shape, num_tokens, max_model_len)
        # one plan for each kind of layer lives as long as the layers run
        kinds = len(set(spec.layers[slice(*ranges.layers)]))
        scratch = kinds * scratch_bytes(shape, max_model_len)
    mlp = num_tokens * (3 * ranges.mlp.size + hidden) * size
    if ranges.experts.size:
        mlp = max(mlp, _experts_bytes(spec, ranges, num_tokens, size, triton))
    sampling = _sampling_bytes(spec, ranges, min(num_sampled, num_tokens), size)
    return stream + scratch + max(attention, mlp, sampling if last_stage else 0) + LIBRARY_BYTES


def _experts_bytes(
    spec: ModelSpec, ranges: RankRanges, num_tokens: int, size: int, triton: bool
) -> int:
    """Of a sparse layer, all of whose tokens may choose experts of this rank."""
    hidden, inner = spec.hidden_size, spec.moe_intermediate_size
    pairs = num_tokens * spec.num_experts_per_tok
    held = num_tokens * min(spec.num_experts_per_tok, ranges.experts.size)
    out = num_tokens * hidden * size
    if triton:
        # gated rows by expert, a row of each pair; weights, experts and order of the pairs
        return (
            (held * inner + pairs * hidden) * size
            + 12 * pairs
            + out
            + (num_tokens * spec.num_experts * size)
        )
    # C++: a row of x and a gated one of each pair; its weight, expert and places
    kernels = held * (hidden + inner) * size + 24 * pairs
    # torch: one expert at a time, and it may have all tokens: rows of x, gate and up, their
    # product, what comes out of it and that in float32; pairs in order of their experts
    plain = num_tokens * ((2 * hidden + 3 * inner) * size + 4 * hidden) + 64 * pairs
    # the router's logits, in float32 too, in order and as shares; the sum in float32
    routing = num_tokens * spec.num_experts * (size + 24)
    return max(kernels, plain) + routing + out + num_tokens * hidden * 4


def _sampling_bytes(spec: ModelSpec, ranges: RankRanges, num_rows: int, size: int) -> int:
    """Of logits and all that sampling makes of them, on a rank of the last stage."""
    at_once = sample_workspace_bytes(spec.vocab_size)
    if ranges.vocab.size == spec.vocab_size:
        # logits in the weights' dtype and float32; then adjusted, and the rows that want logprobs
        return num_rows * spec.vocab_size * max(size + 4, 12) + at_once
    # the rank's part of them, a copy of its greedy rows; others are made whole some at a time
    return num_rows * ranges.vocab.size * max(size + 4, 8) + 2 * at_once


def saved_rows_bytes(spec: ModelSpec, *, num_tokens: int, element_bytes: int) -> int:
    """Hidden states that a rank keeps from step to step, where rows may stop between two layers:
    of as many positions as a step has, whatever its part of the model."""
    return num_tokens * spec.hidden_size * element_bytes


def graph_bytes(
    spec: ModelSpec,
    *,
    num_rows: int,
    max_model_len: int,
    block_size: int,
    element_bytes: int,
    ranges: RankRanges,
) -> int:
    """What is set aside for CUDA graphs of decode steps of up to `num_rows` rows: all take what is
    alive within one from the same pool, which nothing else uses."""
    return RECORDED_BYTES + workspace_bytes(
        spec,
        num_tokens=num_rows,
        num_sampled=num_rows,
        max_model_len=max_model_len,
        block_size=block_size,
        element_bytes=element_bytes,
        kind="cuda",
        ranges=ranges,
        triton=True,
    )


def relay_staging_bytes(block_bytes: int, kind: Kind) -> int:
    """Upper bound of what relays set aside on a rank, whose blocks of both pools together are
    `block_bytes`: a round (`kvcache/relay`), on a CPU once more in the order of the pool."""
    return (1 if kind == "cuda" else 2) * max(KV_BATCH_BYTES, block_bytes)


def copy_staging_bytes(part_bytes: int, kind: Kind) -> int:
    """Upper bound of what stores and loads have in device memory beside pool and tier, where a
    rank's part of a tier block is `part_bytes`: on a GPU the slots of both directions
    (`kvcache/lane`), on a CPU for each thread once in the order of the pool, once in the tier's
    (`kvcache/copies`)."""
    if kind == "cuda":
        return 2 * KV_SLOTS * max(KV_BATCH_BYTES, part_bytes)
    return COPY_THREADS * 2 * part_bytes
