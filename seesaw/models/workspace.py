"""How much memory a step needs beside weights and KV: what the engine's memory budget sets aside.

A sum of what is alive at once in `decoder.py` and the ops; a test compares it with the measured
peak.
"""

from __future__ import annotations

import torch

from seesaw.families.spec import ModelSpec
from seesaw.ops.attention_plan import AttentionShape, scratch_bytes
from seesaw.ops.attention_plan import workspace_bytes as attention_workspace_bytes
from seesaw.ops.top_tokens import sample_workspace_bytes

LIBRARY_BYTES = 32 * 2**20
"""What oneDNN or cuBLAS take for themselves in a matrix product."""


def attention_shape(
    spec: ModelSpec,
    sliding_window: int | None,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> AttentionShape:
    return AttentionShape(
        num_heads=spec.num_attention_heads,
        num_kv_heads=spec.num_key_value_heads,
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
) -> int:
    """Upper bound of the bytes that one step allocates, sampling included.

    num_tokens: most tokens of a step; num_sampled: most rows that sample; max_model_len: most
    tokens of a row with its cached ones.
    """
    size = dtype.itemsize
    hidden, inner = spec.hidden_size, spec.intermediate_size
    q_columns = spec.num_attention_heads * spec.head_dim
    qkv_columns = q_columns + 2 * spec.num_key_value_heads * spec.head_dim
    # residual, delta, normed, and inside a norm two float32 copies
    stream = num_tokens * hidden * (4 * size + 8)
    # qkv; q and k normed (in float32 on the way), rolled, rotated; attention's output
    attention = num_tokens * (qkv_columns * 3 * size + q_columns * size)
    if spec.qk_norm:
        attention += num_tokens * qkv_columns * (size + 8)
    shape = attention_shape(spec, None, block_size, dtype, device)
    attention += attention_workspace_bytes(shape, num_tokens, max_model_len)
    mlp = num_tokens * (3 * inner + hidden) * size
    # logits in the weights' dtype and float32; then adjusted, and the rows that want logprobs
    sampling = min(num_sampled, num_tokens) * spec.vocab_size * max(size + 4, 12)
    sampling += sample_workspace_bytes(spec.vocab_size)
    # one plan for each kind of layer lives as long as the layers run
    scratch = len(set(spec.layers)) * scratch_bytes(shape, max_model_len)
    return stream + scratch + max(attention, mlp, sampling) + LIBRARY_BYTES
