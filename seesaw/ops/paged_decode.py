"""Attention of one query per row over the paged KV pool: the decode steps of rows of any length.

    out[r] = softmax(sm_scale * q[r] K^T, the last keys within the window) V     per query head
    lse[r] = log(sum(exp(scores)))

Bytes: K and V of every visible key once, q and out; flops: 4 * D per (visible key, query head).
Bound by memory: 2 * G flops per byte in bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch

from seesaw.ops.attention_cases import door_inputs, fake_attention
from seesaw.ops.registry import FLOAT_TOLERANCE, Bench, Case, Cost, Door, Op
from seesaw.ops.triton_backend import on_triton

# Shape letters: R rows, T tokens of all rows, H query heads, K KV heads, G = H / K, D head_dim, S
# segments, P blocks per segment, C keys of a row.


@overload
def paged_decode(
    q_RHD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    sm_scale: float,
    sliding_window: int | None = ...,
    soft_cap: float | None = ...,
    k_scale_K: torch.Tensor | None = ...,
    v_scale_K: torch.Tensor | None = ...,
    cu_seqlens_q: torch.Tensor | None = ...,
    max_seq_len: int | None = ...,
    out_RHD: torch.Tensor | None = ...,
    lse_RH: torch.Tensor | None = ...,
    return_lse: Literal[False] = ...,
) -> torch.Tensor: ...
@overload
def paged_decode(
    q_RHD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    sm_scale: float,
    sliding_window: int | None = ...,
    soft_cap: float | None = ...,
    k_scale_K: torch.Tensor | None = ...,
    v_scale_K: torch.Tensor | None = ...,
    cu_seqlens_q: torch.Tensor | None = ...,
    max_seq_len: int | None = ...,
    out_RHD: torch.Tensor | None = ...,
    lse_RH: torch.Tensor | None = ...,
    return_lse: Literal[True],
) -> tuple[torch.Tensor, torch.Tensor]: ...
def paged_decode(
    q_RHD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    sm_scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    k_scale_K: torch.Tensor | None = None,
    v_scale_K: torch.Tensor | None = None,
    cu_seqlens_q: torch.Tensor | None = None,
    max_seq_len: int | None = None,
    out_RHD: torch.Tensor | None = None,
    lse_RH: torch.Tensor | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Returns `[R, H, D]` of q's dtype, with `return_lse` also `[R, H]` float32.

    q_RHD            bfloat16, float16 or float32, any strides but the last, which is 1; query head
                     h reads KV head h // G
    k_cache, v_cache [num_blocks, block_size, K, D], any strides but the last, any block_size; of
                     q's dtype or float8_e4m3fn; they hold the query's own key already
    block_table      [R, P] int32; entries past a row's last block are not used
    seq_lens         [R] int32, on the device as all else; a row of 0 gives out 0 and lse -inf
                     With tables `[R, S, P]` and lengths `[R, S]` a row's keys are those of its S
                     segments, one after another, each in blocks of its own; any may be empty
    sliding_window   a query sees this many keys, itself included; None = all
    soft_cap         scores become soft_cap * tanh(score / soft_cap)
    k_scale_K, v_scale_K  float32 `[K]`, for float8 pools alone: a value is what is stored times
                     this (1 where None)
    cu_seqlens_q     [R + 1] int32: q and results are then ragged, `[T, ..]`, row r having the
                     tokens from cu_seqlens_q[r] on. Rows of exactly one token are computed; of the
                     others nothing is read and nothing in the results is touched
    max_seq_len      no row is longer, its segments together (default: what the table has room
                     for). Chooses how many programs share a row, so a bound that is not far off is
                     faster; results are right whatever it is
    out_RHD, lse_RH  written to in place of fresh memory; lse_RH contiguous

    What the pool holds beyond `seq_lens` has no influence, be it NaN. Head_dim is 16 to 256 in
    steps of 16, G 1 to 16. The kernel neither waits for the device nor reads from it, so a launch
    can be captured in a CUDA graph, and is deterministic. Raises UnsupportedError there; plain
    torch, which computes elsewhere in float32, takes any sizes. (Rows of KV in float8 or segments
    apart, `paged_attention` is the faster op on a CPU.)
    """
    if on_triton(q_RHD):
        from seesaw.kernels.paged_decode import paged_decode as launch

        return launch(
            q_RHD, k_cache, v_cache, block_table, seq_lens, sm_scale=sm_scale,
            sliding_window=sliding_window, soft_cap=soft_cap, k_scale_K=k_scale_K,
            v_scale_K=v_scale_K, cu_seqlens_q=cu_seqlens_q, max_seq_len=max_seq_len,
            out_RHD=out_RHD, lse_RH=lse_RH, return_lse=return_lse,
        )  # fmt: skip
    if out_RHD is None:
        out_RHD = torch.empty(q_RHD.shape, dtype=q_RHD.dtype, device=q_RHD.device)
    if lse_RH is None:
        lse_RH = q_RHD.new_empty(q_RHD.shape[:2], dtype=torch.float32)
    _attend_with_torch(
        q_RHD, k_cache, v_cache, block_table, seq_lens, cu_seqlens_q, sm_scale, sliding_window,
        soft_cap, k_scale_K, v_scale_K, out_RHD, lse_RH,
    )  # fmt: skip
    return (out_RHD, lse_RH) if return_lse else out_RHD


def _attend_with_torch(
    q_RHD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    cu_seqlens_q: torch.Tensor | None,
    sm_scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
    k_scale_K: torch.Tensor | None,
    v_scale_K: torch.Tensor | None,
    out_RHD: torch.Tensor,
    lse_RH: torch.Tensor,
) -> None:
    """Row after row."""
    rows, kv_heads = len(seq_lens), k_cache.shape[2]
    starts = range(rows + 1) if cu_seqlens_q is None else cu_seqlens_q.tolist()
    tables_RSP = block_table[:, None] if block_table.dim() == 2 else block_table
    lens_RS = seq_lens[:, None] if seq_lens.dim() == 1 else seq_lens
    for row, token in enumerate(starts[:-1]):
        if starts[row + 1] - token != 1:
            continue
        table_SP, lens_S = tables_RSP[row], lens_RS[row]
        places = _places(table_SP, lens_S, k_cache.shape[1], sliding_window)
        k_CKD, v_CKD = (cache[places].float() for cache in (k_cache, v_cache))
        if k_scale_K is not None:
            k_CKD *= k_scale_K[:, None]
        if v_scale_K is not None:
            v_CKD *= v_scale_K[:, None]
        q_KGD = q_RHD[token].float().view(kv_heads, -1, q_RHD.shape[2])
        scores_KGC = torch.einsum("kgd,ckd->kgc", q_KGD, k_CKD) * sm_scale
        if soft_cap is not None:
            scores_KGC = soft_cap * (scores_KGC / soft_cap).tanh()
        lse_RH[token] = scores_KGC.logsumexp(-1).flatten()
        out_KGD = torch.einsum("kgc,ckd->kgd", scores_KGC.softmax(-1), v_CKD)
        out_RHD[token] = out_KGD.flatten(0, 1).to(out_RHD.dtype)


def _places(
    table_SP: torch.Tensor, lens_S: torch.Tensor, block_size: int, window: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(block, slot in it) of each key that the last query of a row sees."""
    blocks, slots = [], []
    for table_P, length in zip(table_SP, lens_S.tolist(), strict=True):
        key = torch.arange(length, device=table_P.device)
        blocks.append(table_P[key // block_size].long())
        slots.append(key % block_size)
    first = 0 if window is None else max(0, int(lens_S.sum()) - window)
    return torch.cat(blocks)[first:], torch.cat(slots)[first:]


def paged_decode_reference(
    q_RHD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    sm_scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    k_scale_K: torch.Tensor | None = None,
    v_scale_K: torch.Tensor | None = None,
    cu_seqlens_q: torch.Tensor | None = None,
    max_seq_len: int | None = None,
    out_RHD: torch.Tensor | None = None,
    lse_RH: torch.Tensor | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    out = torch.zeros_like(q_RHD) if out_RHD is None else out_RHD
    lse = torch.zeros(q_RHD.shape[:2]) if lse_RH is None else lse_RH
    rows, block_size, kv_heads = len(seq_lens), k_cache.shape[1], k_cache.shape[2]
    starts = list(range(rows + 1)) if cu_seqlens_q is None else cu_seqlens_q.tolist()
    segmented = seq_lens.dim() == 2
    tables = (block_table if segmented else block_table[:, None]).tolist()
    lengths = (seq_lens if segmented else seq_lens[:, None]).tolist()
    ones_K = torch.ones(kv_heads)
    for row in range(rows):
        if starts[row + 1] - starts[row] != 1:
            continue
        seen = [
            (table[key // block_size], key % block_size)
            for table, length in zip(tables[row], lengths[row], strict=True)
            for key in range(length)
        ][-(sliding_window or 2**31) :]
        nothing = torch.zeros(0, *k_cache.shape[2:], dtype=torch.float64)
        k_CKD = torch.cat([nothing, *(k_cache[place][None].double() for place in seen)])
        v_CKD = torch.cat([nothing, *(v_cache[place][None].double() for place in seen)])
        k_CKD *= (ones_K if k_scale_K is None else k_scale_K)[:, None].double()
        v_CKD *= (ones_K if v_scale_K is None else v_scale_K)[:, None].double()
        for head, q_D in enumerate(q_RHD[starts[row]].double()):
            kv_head = head // (q_RHD.shape[1] // kv_heads)
            scores_C = k_CKD[:, kv_head] @ q_D * sm_scale
            if soft_cap is not None:
                scores_C = soft_cap * torch.tanh(scores_C / soft_cap)
            lse[starts[row], head] = scores_C.exp().sum().log()
            out[starts[row], head] = (scores_C.softmax(0) @ v_CKD[:, kv_head]).to(out.dtype)
    return (out, lse) if return_lse else out


def _make_inputs(generator: torch.Generator, case: Case, dtype: torch.dtype) -> dict[str, object]:
    block_size, size, kv_heads = case["block_size"], case["head_dim"], case["kv_heads"]
    lens = torch.tensor(case["lens"], dtype=torch.int32)
    counts = -(-lens // block_size)
    used = int(counts.sum())
    table = torch.zeros(*lens.shape, max([1, *counts.flatten().tolist()]), dtype=torch.int32)
    order = torch.randperm(used, generator=generator).to(torch.int32) + 1
    table[torch.arange(table.shape[-1]) < counts[..., None]] = order
    pool = torch.randn(used + 1, kv_heads, 2, block_size, size, generator=generator).to(dtype)
    scales: list[torch.Tensor | None] = [None, None]
    if case.get("fp8"):
        pool = (pool.float() * 3).to(torch.float8_e4m3fn)
        scales = [torch.rand(kv_heads, generator=generator) * 0.5 + 0.1 for _ in range(2)]
    shape = (len(lens), kv_heads * case["group"], size)
    return {
        "q_RHD": torch.randn(shape, generator=generator).to(dtype),
        "k_cache": pool[:, :, 0].transpose(1, 2),
        "v_cache": pool[:, :, 1].transpose(1, 2),
        "block_table": table,
        "seq_lens": lens,
        "sm_scale": size**-0.5,
        "sliding_window": case.get("sliding_window"),
        "soft_cap": case.get("soft_cap"),
        "k_scale_K": scales[0],
        "v_scale_K": scales[1],
        "max_seq_len": case.get("max_seq_len"),
        "return_lse": case.get("lse", False),
    }


def _cost(case: Case, dtype: torch.dtype) -> Cost:
    size, kv_heads, rows = case["head_dim"], case["kv_heads"], len(case["lens"])
    window = case.get("sliding_window") or 2**62
    lens = [sum(row) if isinstance(row, tuple) else row for row in case["lens"]]
    keys = sum(min(length, window) for length in lens)
    heads = kv_heads * case["group"]
    kv_bytes = 2 * keys * kv_heads * size * (1 if case.get("fp8") else dtype.itemsize)
    lse_bytes = 4 * rows * heads if case.get("lse") else 0
    q_and_out_bytes = 2 * rows * heads * size * dtype.itemsize
    return Cost(kv_bytes + q_and_out_bytes + lse_bytes, 4 * keys * heads * size)


def _door(
    q_RHD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    sm_scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    k_scale_K: torch.Tensor | None = None,
    v_scale_K: torch.Tensor | None = None,
    max_seq_len: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return paged_decode(
        q_RHD, k_cache, v_cache, block_table, seq_lens, sm_scale=sm_scale,
        sliding_window=sliding_window, soft_cap=soft_cap, k_scale_K=k_scale_K, v_scale_K=v_scale_K,
        max_seq_len=max_seq_len, return_lse=True,
    )  # fmt: skip


def _case(
    lens: Sequence[int] | Sequence[Sequence[int]], kv_heads: int, group: int, head_dim: int,
    block_size: int, **more: float,
) -> Case:  # fmt: skip
    sizes = {"kv_heads": kv_heads, "group": group, "head_dim": head_dim, "block_size": block_size}
    return {"lens": tuple(lens), **sizes, **more}


_LENS = (1, 0, 33, 300, 16)
_SEGMENTS = ((5, 0, 17), (0, 0, 0), (33, 1, 40), (0, 0, 1))
OP = Op(
    name="paged_decode",
    function=paged_decode,
    reference=paged_decode_reference,
    make_inputs=_make_inputs,
    cases=(
        _case((), 1, 1, 64, 16),
        _case([1], 3, 3, 64, 32, lse=True),
        _case(_LENS, 1, 1, 80, 16),
        _case([700, 3], 1, 4, 128, 64, lse=True),  # several programs to a row
        _case(_LENS, 1, 7, 96, 128),
        _case([40, 7], 2, 16, 256, 256),
        _case(_LENS, 1, 2, 64, 16, sliding_window=1),
        _case([700, 40], 1, 3, 48, 16, sliding_window=600, soft_cap=3.0, lse=True),
        _case(_LENS, 2, 3, 16, 5, lse=True, soft_cap=2.0),
        _case(_SEGMENTS, 1, 5, 32, 16, lse=True),
        _case(_SEGMENTS, 2, 2, 64, 32, sliding_window=20, max_seq_len=80),
        _case([50, 0, 9], 2, 4, 80, 16, fp8=True, lse=True),
        _case([600, 1], 1, 4, 64, 64, fp8=True, soft_cap=4.0),
    ),
    tolerance=FLOAT_TOLERANCE,
    cost=_cost,
    bench={
        f"{name}, blocks of {block_size}": Bench(
            case=_case(lens, *heads, block_size, max_seq_len=max(lens), **more),
            devices=("cuda",),
            aim=aim,
        )
        for name, lens, heads, block_size, more, aim in (
            ("64 x 4k, 32/8 heads x 128", (4096,) * 64, (8, 4, 128), 64, {}, 0.85),
            ("64 x 4k, 32/8 heads x 128", (4096,) * 64, (8, 4, 128), 16, {}, 0.85),
            ("8 x 32k, 32/8 heads x 128", (32768,) * 8, (8, 4, 128), 64, {}, 0.80),
            ("1 x 128k, 32/8 heads x 128", (131072,), (8, 4, 128), 64, {}, 0.70),
            ("64 x 4k, 32/8 heads x 128, fp8", (4096,) * 64, (8, 4, 128), 64, {"fp8": 1}, None),
            (
                "1 x 64k and 63 x 1k, 32/8 heads x 128",
                (65536, *[1024] * 63),
                (8, 4, 128),
                64,
                {},
                None,
            ),
            ("64 x 4k, 9/3 heads x 64", (4096,) * 64, (3, 3, 64), 64, {}, None),
            ("16 x 4k, 4/1 heads x 256", (4096,) * 16, (1, 4, 256), 64, {}, None),
        )
    },
    door=Door(_door, fake_attention, door_inputs),
)
