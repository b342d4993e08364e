"""Causal attention of prompt chunks over the paged KV pool, which holds them and what came before.

    out[i] = softmax(sm_scale * q[i] K^T, keys up to i, within the window) V   per query head

Bytes: K and V of every row once, q and out. Flops: 4 * D per (query, visible key, query head),
which bounds it for chunks of some hundred tokens and more; rows of one token are `paged_decode`'s.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from seesaw.ops.attention_cases import (
    door_inputs,
    fake_attention,
    paged_case,
    paged_cost,
    paged_inputs,
)
from seesaw.ops.paged_attention import paged_attention, paged_attention_reference
from seesaw.ops.registry import FLOAT_TOLERANCE, Bench, Case, Door, Op
from seesaw.ops.triton_backend import on_triton

# Shape letters: T tokens, H query heads, K KV heads, G = H / K, D head_dim, R rows, P blocks per
# row.


def paged_prefill(
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    max_seqlen_q: int,
    sm_scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    k_scale_K: torch.Tensor | None = None,
    v_scale_K: torch.Tensor | None = None,
    skip_single: bool = False,
    out_THD: torch.Tensor | None = None,
    lse_TH: torch.Tensor | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention of ragged rows; returns `[T, H, D]` of q's dtype: `out_THD`, or a new one.

    q_THD            queries of all rows, one row after another, any strides with the last dim
                     contiguous; query head h reads KV head h // G
    k_cache, v_cache [num_blocks, block_size, K, D], any strides with the last dim contiguous, of
                     q's dtype or float8_e4m3fn; they hold this step's tokens already
    block_table      [R, P] int32; entries past a row's last block are not used
    cu_seqlens_q     [R + 1] int32; row r has the LAST tokens of its sequence, none allowed
    seq_lens         [R] int32, tokens of each row whose KV counts, this step's included; all three
                     on q's device
    max_seqlen_q     no row has more queries; it chooses a configuration
    sliding_window   a query sees this many keys, itself included; None = all before it
    soft_cap         scores become soft_cap * tanh(score / soft_cap)
    k_scale_K, v_scale_K  float32 per KV head: a value is what is stored times this; None = 1
    skip_single      rows of exactly one query are not computed
    out_THD, lse_TH  where results go; of rows not computed they keep what they hold, a new one is
                     undefined there. lse is float32, contiguous
    return_lse       also the natural log of the sum of exp of each query head's scores `[T, H]`

    What the pool holds beyond `seq_lens` has no influence, be it NaN. Kernels take any block_size
    (a power of two from 16 on is read a page at a time), a head_dim of 16 to 256 in steps of 16, G
    up to 16 and a scale above 0, and raise UnsupportedError otherwise.
    """
    if on_triton(q_THD):
        from seesaw.kernels.paged_prefill import paged_prefill as launch

        return launch(
            q_THD, k_cache, v_cache, block_table, cu_seqlens_q, seq_lens,
            max_seqlen_q=max_seqlen_q, sm_scale=sm_scale, sliding_window=sliding_window,
            soft_cap=soft_cap, k_scale_K=k_scale_K, v_scale_K=v_scale_K, skip_single=skip_single,
            out_THD=out_THD, lse_TH=lse_TH, return_lse=return_lse,
        )  # fmt: skip
    offsets = cu_seqlens_q.tolist()
    got_THD, got_TH = paged_attention(
        q_THD[: offsets[-1]],
        _values(k_cache, k_scale_K, q_THD.dtype),
        _values(v_cache, v_scale_K, q_THD.dtype),
        block_table,
        offsets,
        seq_lens.tolist(),
        sm_scale=sm_scale,
        sliding_window=sliding_window,
        soft_cap=soft_cap,
        return_lse=True,
    )
    out_THD = torch.empty_like(q_THD) if out_THD is None else out_THD
    if lse_TH is None:
        lse_TH = torch.empty(q_THD.shape[:2], dtype=torch.float32, device=q_THD.device)
    return _put(offsets, skip_single, got_THD, got_TH, out_THD, lse_TH, return_lse)


def _values(cache: torch.Tensor, scale_K: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """What a pool stands for, in `dtype`."""
    if scale_K is None:
        return cache.to(dtype)
    return (cache.float() * scale_K[:, None]).to(dtype)


def _put(
    offsets: list[int],
    skip_single: bool,
    got_THD: torch.Tensor,
    got_TH: torch.Tensor,
    out_THD: torch.Tensor,
    lse_TH: torch.Tensor,
    return_lse: bool,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Results of the rows that are asked for, where they belong."""
    for start, stop in pairwise(offsets):
        if not (skip_single and stop - start == 1):
            out_THD[start:stop] = got_THD[start:stop]
            lse_TH[start:stop] = got_TH[start:stop]
    return (out_THD, lse_TH) if return_lse else out_THD


def _door(
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    max_seqlen_q: int,
    sm_scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    k_scale_K: torch.Tensor | None = None,
    v_scale_K: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    got = paged_prefill(
        q_THD, k_cache, v_cache, block_table, cu_seqlens_q, seq_lens, max_seqlen_q=max_seqlen_q,
        sm_scale=sm_scale, sliding_window=sliding_window, soft_cap=soft_cap, k_scale_K=k_scale_K,
        v_scale_K=v_scale_K, return_lse=True,
    )  # fmt: skip
    assert isinstance(got, tuple), "with return_lse there are two"
    return got


def paged_prefill_reference(
    q_THD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    max_seqlen_q: int,
    sm_scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    k_scale_K: torch.Tensor | None = None,
    v_scale_K: torch.Tensor | None = None,
    skip_single: bool = False,
    out_THD: torch.Tensor | None = None,
    lse_TH: torch.Tensor | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    k, v = (_values(cache, scale_K, torch.float64)
            for cache, scale_K in ((k_cache, k_scale_K), (v_cache, v_scale_K)))  # fmt: skip
    offsets = cu_seqlens_q.tolist()
    got = paged_attention_reference(
        q_THD, k, v, block_table, offsets, seq_lens.tolist(), sm_scale=sm_scale,
        sliding_window=sliding_window, soft_cap=soft_cap, return_lse=True,
    )  # fmt: skip
    out_THD = torch.empty_like(q_THD) if out_THD is None else out_THD
    lse_TH = q_THD.new_empty(q_THD.shape[:2], dtype=torch.float32) if lse_TH is None else lse_TH
    return _put(offsets, skip_single, got[0], got[1], out_THD, lse_TH, return_lse)


def _make_inputs(generator: torch.Generator, case: Case, dtype: torch.dtype) -> dict[str, object]:
    inputs = paged_inputs(generator, case, dtype)
    q_THD, kv_heads = inputs["q_THD"], case["kv_heads"]
    scales = 0.5 + torch.rand(2, kv_heads, generator=generator) if case.get("fp8") else (None, None)
    skip = bool(case.get("skip_single"))
    return {
        **inputs,
        "cu_seqlens_q": torch.tensor(inputs["cu_seqlens_q"], dtype=torch.int32),
        "seq_lens": torch.tensor(inputs["seq_lens"], dtype=torch.int32),
        "max_seqlen_q": max((queries for queries, _ in case["rows"]), default=0),
        "k_scale_K": scales[0],
        "v_scale_K": scales[1],
        "skip_single": skip,
        "out_THD": torch.full_like(q_THD, 7.0) if skip else None,
        "lse_TH": torch.full(q_THD.shape[:2], 8.0) if skip else None,
    }


OP = Op(
    name="paged_prefill",
    function=paged_prefill,
    reference=paged_prefill_reference,
    make_inputs=_make_inputs,
    cases=(
        paged_case((), 1, 1, 64, 16),
        paged_case([(0, 0), (0, 9)], 2, 3, 64, 16, lse=True),
        paged_case([(1, 1)], 2, 7, 64, 32),
        paged_case([(1, 17), (0, 5), (20, 90), (4, 4)], 2, 3, 64, 16, lse=True),
        paged_case([(1, 40), (30, 30), (1, 9), (3, 70)], 1, 4, 32, 32, lse=True, skip_single=True),
        paged_case([(90, 300)], 1, 1, 32, 256),
        paged_case([(25, 130), (9, 9)], 1, 7, 16, 64, sliding_window=20, lse=True),
        paged_case([(140, 200)], 1, 1, 48, 5, sliding_window=70),
        paged_case([(2, 50), (1, 33)], 1, 16, 80, 16),
        paged_case([(12, 70)], 1, 5, 96, 128, soft_cap=2.0, lse=True),
        paged_case([(10, 40)], 2, 2, 128, 64, sliding_window=1),
        paged_case([(7, 30)], 1, 2, 256, 16, soft_cap=3.0, sliding_window=8),
        paged_case([(11, 60), (1, 5)], 3, 3, 64, 16, fp8=True, lse=True),
        paged_case([(33, 80)], 1, 2, 32, 64, fp8=True, sliding_window=40),
    ),
    tolerance=FLOAT_TOLERANCE,
    cost=paged_cost,
    door=Door(_door, fake_attention, door_inputs),
    bench={
        f"{name}, blocks of {block_size}": Bench(
            case=paged_case(rows, *heads, block_size), devices=("cuda",), aim=aim
        )
        for name, rows, heads, block_size, aim in (
            ("8k, 32/8 heads x 128", ((8192, 8192),), (8, 4, 128), 64, 0.55),
            ("8k, 32/8 heads x 128", ((8192, 8192),), (8, 4, 128), 16, 0.45),
            ("4k after 4k, 32/8 heads x 128", ((4096, 8192),), (8, 4, 128), 64, 0.55),
            ("4k after 4k, 32/8 heads x 128", ((4096, 8192),), (8, 4, 128), 16, 0.45),
            ("8 x 256 after 4k, 32/8 heads x 128", ((256, 4352),) * 8, (8, 4, 128), 64, None),
            ("8k, 32/8 heads x 64", ((8192, 8192),), (8, 4, 64), 64, None),
        )
    },
    mutates=("out_THD", "lse_TH"),
)
