"""The kernel of prefill attention, over contiguous keys and over paged ones: what
`kernels/ragged_prefill.py` and `kernels/paged_prefill.py` launch.

One program computes BLOCK_M rows: BLOCK_Q = BLOCK_M // G queries of a sequence, each with the G
heads that share a KV head. So K and V are read once for all heads of a group, a chunk of few
queries still fills the tile, and the masked edge of the causal triangle is BLOCK_Q wide instead of
BLOCK_M. It walks over the keys that its queries see with an online softmax in base 2
(FlashAttention-2, Dao 2023, section 3.1), in up to three stretches: before every query's window has
begun (masked), keys that all of its queries see (no mask), the diagonal (masked).
"""

from __future__ import annotations

import triton
import triton.language as tl

from seesaw.kernels.fp8 import widen

# Shape letters: T tokens, H query heads, K KV heads, G = H / K, D head_dim, R rows.

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def _find_row(cu_seqlens_ptr, num_rows, tile, BLOCK_Q: tl.constexpr):
    """The row of a tile, and which of the row's tiles it is.

    Row r owns the tiles from cu_seqlens[r] // BLOCK_Q + r on: never fewer than it needs, and T //
    BLOCK_Q + R in all, which the host knows without the lengths. Those left over are past the end
    of their row.
    """
    low = 0
    high = num_rows
    while high - low > 1:
        middle = (low + high) // 2
        above = tl.load(cu_seqlens_ptr + middle) // BLOCK_Q + middle > tile
        high = tl.where(above, middle, high)
        low = tl.where(above, low, middle)
    return low, tile - (tl.load(cu_seqlens_ptr + low) // BLOCK_Q + low)


@triton.jit
def _find_pages(table_ptr, start, stop, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Where keys `start` to `start + BLOCK_N` lie: the block that holds them all, or one id for
    each. Keys from `stop` on count as the last before it, so that every id is one of the row's.
    """
    if BLOCK_SIZE is None:
        pages = 0  # not used
    elif BLOCK_SIZE % BLOCK_N == 0:
        pages = tl.load(table_ptr + tl.maximum(tl.minimum(start, stop - 1), 0) // BLOCK_SIZE)
    else:
        token = tl.minimum(start + tl.arange(0, BLOCK_N), stop - 1)
        pages = tl.load(table_ptr + tl.maximum(token, 0) // BLOCK_SIZE)
    return pages


@triton.jit
def _load_tile(
    source,
    pages,
    row_start,
    kv_head,
    start,
    stop,
    block_stride,
    token_stride,
    head_stride,
    DTYPE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    USE_TMA: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Keys or values `start` to `start + BLOCK_N` of a sequence, `[BLOCK_N, BLOCK_D]`.

    MASKED: some may be from `stop` on. Pointers leave these 0, descriptors read what is there.
    """
    if USE_TMA:
        if BLOCK_SIZE is None:
            tile = source.load([kv_head, row_start + start, 0])
        else:
            tile = source.load([pages, kv_head, start % BLOCK_SIZE, 0])
        tile = tl.reshape(tile, (BLOCK_N, BLOCK_D))
    else:
        token = start + tl.arange(0, BLOCK_N)
        column = tl.arange(0, BLOCK_D)
        if BLOCK_SIZE is None:
            offset = (row_start + token).to(tl.int64) * token_stride
        else:
            inner = (token % BLOCK_SIZE).to(tl.int64)
            offset = pages.to(tl.int64) * block_stride + inner * token_stride
        tiles = source + kv_head.to(tl.int64) * head_stride + offset[:, None] + column[None, :]
        inside = (column < HEAD_DIM)[None, :]
        if MASKED:
            tile = tl.load(tiles, mask=inside & (token < stop)[:, None], other=0.0)
        elif HEAD_DIM < BLOCK_D:
            tile = tl.load(tiles, mask=inside, other=0.0)
        else:
            tile = tl.load(tiles)
    return widen(tile, DTYPE)


@triton.jit
def _attend(
    acc,
    total,
    top,
    pages,
    q,
    position,
    k,
    v,
    table_ptr,
    row_start,
    kv_head,
    first,
    last,
    stop,
    score_scale,
    soft_cap,
    window,
    k_block_stride,
    k_token_stride,
    k_head_stride,
    v_block_stride,
    v_token_stride,
    v_head_stride,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    USE_TMA: tl.constexpr,
    MASKED: tl.constexpr,
):
    """The online softmax over keys `first` to `last`: acc, sum and maximum (base 2) of each row;
    and the pages of the keys that follow."""
    for start in tl.range(first, last, BLOCK_N):
        # an iteration ahead: a load whose address waits for another load is prefetched less far,
        # and ids copied to shared memory would make each iteration wait for all copies in flight
        next_pages = _find_pages(table_ptr, start + BLOCK_N, stop, BLOCK_SIZE, BLOCK_N)
        k_tile = _load_tile(
            k, pages, row_start, kv_head, start, stop, k_block_stride, k_token_stride,
            k_head_stride, q.dtype, HEAD_DIM, BLOCK_SIZE, BLOCK_N, BLOCK_D, USE_TMA, MASKED,
        )  # fmt: skip
        scores = tl.dot(q, tl.trans(k_tile), input_precision="ieee")
        if soft_cap is None:
            scale = score_scale * LOG2_E
        else:
            # tanh(x) = 1 - 2 / (exp(2 x) + 1), whose ends are right where exp overflows
            doubled = tl.exp2(scores * (2 * LOG2_E * score_scale / soft_cap))
            scores = 1.0 - 2.0 / (doubled + 1.0)
            scale = soft_cap * LOG2_E
        key = start + tl.arange(0, BLOCK_N)
        if MASKED:
            visible = key[None, :] <= position[:, None]
            if window is not None:
                visible = visible & (key[None, :] > position[:, None] - window)
            scores = tl.where(visible, scores, -float("inf"))
        # the scale is above 0, so it may come after the maximum, where it is part of a fused
        # multiply-add
        new_top = tl.maximum(top, tl.max(scores, 1) * scale)
        shift = new_top
        if MASKED:  # a row that has seen no key yet: exp2(-inf - -inf) would be NaN
            shift = tl.where(new_top == -float("inf"), 0.0, new_top)
        weights = tl.exp2(scores * scale - shift[:, None])
        kept = tl.exp2(top - shift)
        total = total * kept + tl.sum(weights, 1)
        v_tile = _load_tile(
            v, pages, row_start, kv_head, start, stop, v_block_stride, v_token_stride,
            v_head_stride, q.dtype, HEAD_DIM, BLOCK_SIZE, BLOCK_N, BLOCK_D, USE_TMA, MASKED,
        )  # fmt: skip
        if USE_TMA and MASKED:  # 0 * NaN would be NaN; of keys the scores are masked
            v_tile = tl.where((key < stop)[:, None], v_tile, 0.0)
        acc = tl.dot(weights.to(q.dtype), v_tile, acc * kept[:, None], input_precision="ieee")
        top = new_top
        pages = next_pages
    return acc, total, top, pages


@triton.jit(do_not_specialize=["num_rows"])
def prefill_kernel(
    q_ptr,
    k,
    v,
    out_ptr,
    lse_ptr,
    block_table_ptr,
    cu_seqlens_ptr,
    seq_lens_ptr,
    k_scale_ptr,
    v_scale_ptr,
    num_rows,
    num_kv_heads,
    sm_scale,
    soft_cap,
    window,
    q_token_stride,
    q_head_stride,
    out_token_stride,
    out_head_stride,
    k_block_stride,
    k_token_stride,
    k_head_stride,
    v_block_stride,
    v_token_stride,
    v_head_stride,
    table_row_stride,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SKIP_SINGLE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    USE_TMA: tl.constexpr,
):
    """`k` and `v` are pointers, or with USE_TMA descriptors of `[K, T, D]` (BLOCK_SIZE None) or
    `[num_blocks, K, BLOCK_SIZE, D]`."""
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    kv_head = tl.program_id(0) % num_kv_heads
    # the last tile of a row has the most keys: it comes first, so that short ones fill the end
    tile = (tl.num_programs(0) - 1 - tl.program_id(0)) // num_kv_heads
    row, tile = _find_row(cu_seqlens_ptr, num_rows, tile, BLOCK_Q)
    row_start = tl.load(cu_seqlens_ptr + row)
    num_queries = tl.load(cu_seqlens_ptr + row + 1) - row_start
    if (tile * BLOCK_Q >= num_queries) | (SKIP_SINGLE & (num_queries == 1)):
        return

    prefix = 0
    table_ptr = block_table_ptr
    if BLOCK_SIZE is not None:
        prefix = tl.load(seq_lens_ptr + row) - num_queries
        table_ptr = block_table_ptr + row.to(tl.int64) * table_row_stride
    index = tl.arange(0, BLOCK_M)
    query = tile * BLOCK_Q + index // GROUP
    head = (kv_head * GROUP + index % GROUP).to(tl.int64)
    token = (row_start + query).to(tl.int64)
    real = (index < BLOCK_Q * GROUP) & (query < num_queries)
    column = tl.arange(0, BLOCK_D)
    inside = real[:, None] & (column < HEAD_DIM)[None, :]
    q_offset = token * q_token_stride + head * q_head_stride
    q = tl.load(q_ptr + q_offset[:, None] + column[None, :], mask=inside, other=0.0)
    score_scale = sm_scale
    if k_scale_ptr is not None:
        score_scale = score_scale * tl.load(k_scale_ptr + kv_head)

    # queries at positions lowest .. highest, which see keys up to themselves
    position = prefix + query
    lowest = prefix + tile * BLOCK_Q
    highest = prefix + tl.minimum((tile + 1) * BLOCK_Q, num_queries) - 1
    stop = highest + 1
    first = 0
    shared = 0  # keys shared to diagonal are seen by all queries
    if window is not None:
        first = tl.maximum(lowest - window + 1, 0) // BLOCK_N * BLOCK_N
        shared = tl.maximum(highest - window + BLOCK_N, 0) // BLOCK_N * BLOCK_N
        shared = tl.maximum(tl.minimum(shared, tl.cdiv(stop, BLOCK_N) * BLOCK_N), first)
    diagonal = tl.maximum(tl.maximum(lowest + 1, 0) // BLOCK_N * BLOCK_N, shared)

    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    top = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    pages = _find_pages(table_ptr, first, stop, BLOCK_SIZE, BLOCK_N)
    if window is not None:
        acc, total, top, pages = _attend(
            acc, total, top, pages, q, position, k, v, table_ptr, row_start, kv_head, first,
            tl.minimum(shared, stop), stop, score_scale, soft_cap, window, k_block_stride,
            k_token_stride, k_head_stride, v_block_stride, v_token_stride, v_head_stride,
            HEAD_DIM, BLOCK_SIZE, BLOCK_N, BLOCK_D, USE_TMA, True,
        )  # fmt: skip
    acc, total, top, pages = _attend(
        acc, total, top, pages, q, position, k, v, table_ptr, row_start, kv_head, shared, diagonal,
        stop, score_scale, soft_cap, window, k_block_stride, k_token_stride, k_head_stride,
        v_block_stride, v_token_stride, v_head_stride,
        HEAD_DIM, BLOCK_SIZE, BLOCK_N, BLOCK_D, USE_TMA, False,
    )  # fmt: skip
    acc, total, top, pages = _attend(
        acc, total, top, pages, q, position, k, v, table_ptr, row_start, kv_head, diagonal, stop,
        stop, score_scale, soft_cap, window, k_block_stride, k_token_stride, k_head_stride,
        v_block_stride, v_token_stride, v_head_stride,
        HEAD_DIM, BLOCK_SIZE, BLOCK_N, BLOCK_D, USE_TMA, True,
    )  # fmt: skip

    seen = tl.where(total == 0.0, 1.0, total)  # a row that sees no key is 0, its lse -inf
    weight = 1.0 / seen
    if v_scale_ptr is not None:
        weight = weight * tl.load(v_scale_ptr + kv_head)
    out = acc * weight[:, None]
    out_offset = token * out_token_stride + head * out_head_stride
    tl.store(
        out_ptr + out_offset[:, None] + column[None, :], out.to(out_ptr.dtype.element_ty),
        mask=inside,
    )  # fmt: skip
    if lse_ptr is not None:
        lse = (top + tl.log2(seen)) * LN_2
        tl.store(lse_ptr + token * (num_kv_heads * GROUP) + head, lse, mask=real)
