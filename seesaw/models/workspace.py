"""How much memory a step needs beside weights and KV: what a device's memory budget sets aside.

A sum of what is alive at once in `decoder.py` and the ops; a test compares it with the measured
peak.
"""

from __future__ import annotations

import torch

from seesaw.families.spec import ModelSpec
from seesaw.layers.comm import MAX_HANDOVERS
from seesaw.layout.parallel import ParallelLayout
from seesaw.layout.ranges import RankRanges, rank_ranges
from seesaw.ops.attention_plan import AttentionShape, scratch_bytes
from seesaw.ops.attention_plan import workspace_bytes as attention_workspace_bytes
from seesaw.ops.top_tokens import sample_workspace_bytes

LIBRARY_BYTES = 32 * 2**20
"""What oneDNN or cuBLAS take for themselves in a matrix product."""


def attention_shape(
    spec: ModelSpec,
    ranges: RankRanges,
    sliding_window: int | None,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> AttentionShape:
    return AttentionShape(
        num_heads=ranges.query_heads.size,
        num_kv_heads=ranges.kv_heads.size,
        head_dim=spec.head_dim,
        block_size=block_size,
        element_bytes=dtype.itemsize,
        sliding_window=sliding_window,
        unfused=spec.attn_soft_cap is not None or device.type == "cuda",
    )


def workspace_bytes(
    spec: ModelSpec,
    *,
    num_tokens: int,
    num_sampled: int,
    max_model_len: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    ranges: RankRanges | None = None,
) -> int:
    """Upper bound of the bytes that one step allocates on a rank that holds `ranges` (the whole
    model without), sampling included.

    num_tokens: most tokens of a step; num_sampled: most rows that sample; max_model_len: most
    tokens of a row with its cached ones.
    """
    size, hidden = dtype.itemsize, spec.hidden_size
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
    shape = attention_shape(spec, ranges, None, block_size, dtype, device)
    attention += attention_workspace_bytes(shape, num_tokens, max_model_len)
    mlp = num_tokens * (3 * ranges.mlp.size + hidden) * size
    sampling = _sampling_bytes(spec, ranges, min(num_sampled, num_tokens), size)
    # one plan for each kind of layer lives as long as the layers run
    kinds = len(set(spec.layers[slice(*ranges.layers)]))
    scratch = kinds * scratch_bytes(shape, max_model_len)
    return stream + scratch + max(attention, mlp, sampling if last_stage else 0) + LIBRARY_BYTES


def _sampling_bytes(spec: ModelSpec, ranges: RankRanges, num_rows: int, size: int) -> int:
    """Of logits and all that sampling makes of them, on a rank of the last stage."""
    at_once = sample_workspace_bytes(spec.vocab_size)
    if ranges.vocab.size == spec.vocab_size:
        # logits in the weights' dtype and float32; then adjusted, and the rows that want logprobs
        return num_rows * spec.vocab_size * max(size + 4, 12) + at_once
    # the rank's part of them, a copy of its greedy rows; others are made whole some at a time
    return num_rows * ranges.vocab.size * max(size + 4, 8) + 2 * at_once
