"""Causal attention of whole prompts, before their keys and values are in a pool.

    out[i] = softmax(sm_scale * q[i] K^T, keys up to i, within the window) V   per query head

Bytes: q, K, V and out once. Flops: 4 * D per (query, visible key, query head), which bounds it from
some hundred tokens on. On CPUs, and in plain torch, K and V count as a pool of blocks of one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F

from seesaw.ops.attention_cases import door_inputs, fake_attention
from seesaw.ops.paged_attention import paged_attention, paged_attention_reference
from seesaw.ops.registry import FLOAT_TOLERANCE, Bench, Case, Cost, Door, Op
from seesaw.ops.triton_backend import on_triton

# Shape letters: T tokens, H query heads, K KV heads, G = H / K, D head_dim, R rows.


def ragged_prefill(
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    cu_seqlens: torch.Tensor,
    *,
    max_seqlen: int,
    sm_scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention of R prompts, one after another; returns `[T, H, D]` of q's dtype, contiguous.

    q_THD            any strides with the last dim contiguous; query head h reads KV head h // G
    k_TKD, v_TKD     of the same tokens, such as slices of a fused projection; strides likewise
    cu_seqlens       [R + 1] int32, on the same device; row r is tokens cu_seqlens[r] to
                     cu_seqlens[r + 1], rows of no token allowed; what lies past the last row is
                     not computed
    max_seqlen       no row has more; it chooses a configuration
    sliding_window   a query sees this many keys, itself included; None = all before it
    soft_cap         scores become soft_cap * tanh(score / soft_cap)
    return_lse       also the natural log of the sum of exp of each query head's scores `[T, H]`,
                     float32

    No row sees another's tokens, be they NaN. Kernels take a head_dim of 16 to 256 in steps of 16,
    G up to 16 and a scale above 0, and raise UnsupportedError otherwise.
    """
    if on_triton(q_THD):
        from seesaw.kernels.ragged_prefill import ragged_prefill as launch

        return launch(
            q_THD, k_TKD, v_TKD, cu_seqlens, max_seqlen=max_seqlen, sm_scale=sm_scale,
            sliding_window=sliding_window, soft_cap=soft_cap, return_lse=return_lse,
        )  # fmt: skip
    table, offsets, lengths = _as_pages(cu_seqlens)
    out_THD, lse_TH = paged_attention(
        q_THD[: offsets[-1]],
        k_TKD[:, None],
        v_TKD[:, None],
        table,
        offsets,
        lengths,
        sm_scale=sm_scale,
        sliding_window=sliding_window,
        soft_cap=soft_cap,
        return_lse=True,
    )
    beyond = len(q_THD) - offsets[-1]
    if beyond:
        out_THD = F.pad(out_THD, (0, 0, 0, 0, 0, beyond))
        lse_TH = F.pad(lse_TH, (0, 0, 0, beyond))
    return (out_THD, lse_TH) if return_lse else out_THD


def _as_pages(cu_seqlens: torch.Tensor) -> tuple[torch.Tensor, list[int], list[int]]:
    """Block table, offsets and lengths that say the same of blocks of one token."""
    offsets = cu_seqlens.tolist()
    lengths = [stop - start for start, stop in pairwise(offsets)]
    steps = torch.arange(max(lengths, default=0), dtype=torch.int32, device=cu_seqlens.device)
    table = (cu_seqlens[:-1, None] + steps).clamp_(max=max(offsets[-1] - 1, 0))
    return table, offsets, lengths


def _door(
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    cu_seqlens: torch.Tensor,
    *,
    max_seqlen: int,
    sm_scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    got = ragged_prefill(
        q_THD, k_TKD, v_TKD, cu_seqlens, max_seqlen=max_seqlen, sm_scale=sm_scale,
        sliding_window=sliding_window, soft_cap=soft_cap, return_lse=True,
    )  # fmt: skip
    assert isinstance(got, tuple), "with return_lse there are two"
    return got


def ragged_prefill_reference(
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    cu_seqlens: torch.Tensor,
    *,
    max_seqlen: int,
    sm_scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    return paged_attention_reference(
        q_THD, k_TKD[:, None], v_TKD[:, None], *_as_pages(cu_seqlens), sm_scale=sm_scale,
        sliding_window=sliding_window, soft_cap=soft_cap, return_lse=return_lse,
    )  # fmt: skip


def _make_inputs(generator: torch.Generator, case: Case, dtype: torch.dtype) -> dict[str, object]:
    size, kv_heads, group = case["head_dim"], case["kv_heads"], case["group"]
    lengths = torch.tensor([0, *case["rows"]])
    cu_seqlens = lengths.cumsum(0).to(torch.int32)
    shape = (int(cu_seqlens[-1]), kv_heads, group + 2, size)
    qkv = torch.randn(shape, generator=generator).to(dtype)
    return {
        "q_THD": qkv[:, :, :group].reshape(shape[0], kv_heads * group, size),
        "k_TKD": qkv[:, :, group],
        "v_TKD": qkv[:, :, group + 1],
        "cu_seqlens": cu_seqlens,
        "max_seqlen": int(lengths.max()),
        "sm_scale": size**-0.5,
        "sliding_window": case.get("sliding_window"),
        "soft_cap": case.get("soft_cap"),
        "return_lse": case.get("lse", False),
    }


def _cost(case: Case, dtype: torch.dtype) -> Cost:
    size, kv_heads, window = case["head_dim"], case["kv_heads"], case.get("sliding_window")
    heads, tokens = kv_heads * case["group"], sum(case["rows"])
    pairs = sum(min(p + 1, window or p + 1) for count in case["rows"] for p in range(count))
    elements = 2 * tokens * (heads + kv_heads) * size
    lse_bytes = 4 * tokens * heads if case.get("lse") else 0
    return Cost(elements * dtype.itemsize + lse_bytes, 4 * pairs * heads * size)


def _case(rows: Sequence[int], kv_heads: int, group: int, head_dim: int, **more: float) -> Case:
    sizes = {"kv_heads": kv_heads, "group": group, "head_dim": head_dim}
    return {"rows": tuple(rows), **sizes, **more}


OP = Op(
    name="ragged_prefill",
    function=ragged_prefill,
    reference=ragged_prefill_reference,
    make_inputs=_make_inputs,
    cases=(
        _case((), 1, 1, 64),
        _case((0, 0), 2, 3, 64, lse=True),
        _case((1,), 1, 7, 64),
        _case((1, 0, 37, 2), 2, 3, 64, lse=True),
        _case((150,), 1, 1, 32),
        _case((70,), 1, 7, 16, sliding_window=9, lse=True),
        _case((130, 1, 9), 1, 2, 48, sliding_window=70),
        _case((5, 18), 1, 16, 80),
        _case((29,), 1, 4, 96, soft_cap=2.0, lse=True),
        _case((40, 3), 2, 2, 128, sliding_window=1),
        _case((21,), 1, 2, 256, soft_cap=3.0, sliding_window=8),
    ),
    tolerance=FLOAT_TOLERANCE,
    cost=_cost,
    door=Door(_door, fake_attention, door_inputs),
    bench={
        name: Bench(case=_case(rows, *heads, **more), devices=("cuda",), aim=aim)
        for name, rows, heads, more, aim in (
            ("8k, 32/8 heads x 128", (8192,), (8, 4, 128), {}, 0.60),
            ("4 x 2k, 32/8 heads x 128", (2048,) * 4, (8, 4, 128), {}, None),
            ("16 x 512, 32/8 heads x 128", (512,) * 16, (8, 4, 128), {}, None),
            ("8k, 32/8 heads x 64", (8192,), (8, 4, 64), {}, None),
            (
                "8k, 4/1 heads x 256, window 512",
                (8192,),
                (1, 4, 256),
                {"sliding_window": 512},
                None,
            ),
        )
    },
)
