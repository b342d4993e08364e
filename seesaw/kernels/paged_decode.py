"""Attention of one query per row over the paged pool (formula and bytes: ops/paged_decode.py).

Each program reads some keys of one KV head of one row once, for all the query heads of its group,
which are the rows of one tile. Long rows are split over several programs, whose results a second
kernel merges by their log-sum-exp (FlashDecoding, Dao et al. 2023). How many keys a program takes
is found on the device, from the lengths of all rows, so that programs have like shares whatever the
lengths are, and one launch, or one captured graph, serves all lengths.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from seesaw.kernels.decode_checks import check_decode
from seesaw.kernels.fp8 import readable, widen
from seesaw.kernels.kernel import Build, Config, Kernel, Key, Target
from seesaw.kernels.merge_splits import LN2, LOG2E, MERGE, merge_splits
from seesaw.kernels.target import target_of
from seesaw.kernels.tuning import config_for

# Shape letters: R rows, T tokens of all rows, H query heads, K KV heads, D head_dim, S segments,
# P blocks per segment, N splits.

OP = "paged_decode"
MAX_GROUP = 16
NO_WINDOW = 2**31 - 1
_TILE_ROWS = tl.constexpr(MAX_GROUP)  # what tl.dot takes at least


@triton.jit
def _share(
    seq_lens_ptr, cu_seqlens_q_ptr, num_rows, num_kv_heads, programs, window,
    SEGMENTS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Keys per program where all visible keys of all rows are shared evenly by `programs`."""
    total = tl.zeros([ROWS], tl.int64)
    for start in range(0, num_rows, ROWS):
        row = start + tl.arange(0, ROWS)
        counts = row < num_rows
        if cu_seqlens_q_ptr is not None:
            begin = tl.load(cu_seqlens_q_ptr + row, mask=counts, other=0)
            counts &= tl.load(cu_seqlens_q_ptr + row + 1, mask=counts, other=0) - begin == 1
        length = tl.zeros([ROWS], tl.int32)
        for segment in range(SEGMENTS):
            length += tl.load(seq_lens_ptr + row * SEGMENTS + segment, mask=counts, other=0)
        total += tl.minimum(length, window)
    return tl.cdiv(tl.sum(total, 0) * num_kv_heads, programs).to(tl.int32)


@triton.jit
def _attend(
    q, k_ptr, v_ptr, table_ptr, start, stop, row_max, row_sum, acc,
    k_block_stride, k_token_stride, v_block_stride, v_token_stride, scale, soft_cap,
    BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Online softmax (Milakov and Gimelshein 2018) of keys start..stop of one segment.

    `scale` takes scores to base 2. Each step has at least one key, so that the maximum is finite.
    """
    dim = tl.arange(0, q.shape[1])
    # from 0: where the lower bound comes out of another loop, Triton (3.9) finds out nothing about
    # the addresses, so that it neither widens nor pipelines the loads
    for step in range(0, stop - start, BLOCK_N):
        key = start + step + tl.arange(0, BLOCK_N)
        # what lies beyond `stop` may be NaN, which a weight of 0 would not silence
        inside = key < stop
        block = tl.load(table_ptr + key // BLOCK_SIZE, mask=inside, other=0).to(tl.int64)
        slot = key % BLOCK_SIZE
        loaded = inside[:, None] & (dim < HEAD_DIM)[None, :]
        k_offset = block * k_block_stride + slot * k_token_stride
        k = tl.load(k_ptr + k_offset[:, None] + dim[None, :], mask=loaded, other=0.0)
        scores = tl.dot(q, tl.trans(widen(k, q.dtype)), input_precision="ieee") * scale
        if soft_cap is not None:
            # cap * tanh(score / cap); `scale` has led to 2 / cap * score, in base 2
            scores = (soft_cap * LOG2E) * (1.0 - 2.0 / (tl.exp2(scores) + 1.0))
        scores = tl.where(inside[None, :], scores, -float("inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        weights = tl.exp2(scores - new_max[:, None])
        shrink = tl.exp2(row_max - new_max)
        row_sum = row_sum * shrink + tl.sum(weights, 1)
        v_offset = block * v_block_stride + slot * v_token_stride
        v = tl.load(v_ptr + v_offset[:, None] + dim[None, :], mask=loaded, other=0.0)
        acc = tl.dot(
            weights.to(q.dtype), widen(v, q.dtype), acc * shrink[:, None], input_precision="ieee"
        )
        row_max = new_max
    return row_max, row_sum, acc


@triton.jit(
    do_not_specialize=[
        "table_row_stride", "table_segment_stride", "num_rows", "num_sms", "window",
    ]
)  # fmt: skip
def _paged_decode_kernel(
    q_ptr, k_ptr, v_ptr, block_table_ptr, seq_lens_ptr, cu_seqlens_q_ptr, k_scale_ptr, v_scale_ptr,
    out_ptr, lse_ptr, q_token_stride, q_head_stride, k_block_stride, k_token_stride, k_head_stride,
    v_block_stride, v_token_stride, v_head_stride, table_row_stride, table_segment_stride,
    out_row_stride, out_head_stride, out_split_stride, num_rows, num_sms, window, sm_scale,
    soft_cap, HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, SEGMENTS: tl.constexpr, SPLIT: tl.constexpr, BLOCK_N: tl.constexpr,
    LEAST_KEYS: tl.constexpr, PROGRAMS_PER_SM: tl.constexpr,
):  # fmt: skip
    row, kv_head, split = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    num_kv_heads, num_splits = tl.num_programs(1), tl.num_programs(2)
    token = row.to(tl.int64)
    head = tl.arange(0, _TILE_ROWS)
    lens_ptr = seq_lens_ptr + row.to(tl.int64) * SEGMENTS
    length = 0
    for segment in range(SEGMENTS):
        length += tl.load(lens_ptr + segment)
    visible = tl.minimum(length, window)
    num_heads = GROUP
    if cu_seqlens_q_ptr is not None:
        begin = tl.load(cu_seqlens_q_ptr + row)
        single = tl.load(cu_seqlens_q_ptr + row + 1) - begin == 1
        visible, num_heads = tl.where(single, visible, 0), tl.where(single, GROUP, 0)
        token = begin.to(tl.int64)
    real = head < num_heads
    first, last = length - visible, length
    # partial results are put by row, whole ones by token
    place = row.to(tl.int64) if SPLIT else token
    if SPLIT:
        share = _share(
            seq_lens_ptr, cu_seqlens_q_ptr, num_rows, num_kv_heads, num_sms * PROGRAMS_PER_SM,
            window, SEGMENTS, 128,
        )  # fmt: skip
        share = tl.maximum(share, LEAST_KEYS)
        used = tl.minimum(tl.maximum((visible + share // 2) // share, 1), num_splits)
        keys = tl.cdiv(tl.cdiv(visible, used), BLOCK_N) * BLOCK_N
        first += split * keys
        last = tl.minimum(first + keys, length)
    dim = tl.arange(0, PADDED_DIM)
    stored = real[:, None] & (dim < HEAD_DIM)[None, :]
    q_at = token * q_token_stride + (kv_head * GROUP + head) * q_head_stride
    q = tl.load(q_ptr + q_at[:, None] + dim[None, :], mask=stored, other=0.0)
    scale = sm_scale * LOG2E
    if soft_cap is not None:
        scale *= 2.0 / soft_cap
    if k_scale_ptr is not None:
        scale *= tl.load(k_scale_ptr + kv_head)
    row_max = tl.full([_TILE_ROWS], -float("inf"), tl.float32)
    row_sum = tl.zeros([_TILE_ROWS], tl.float32)
    acc = tl.zeros([_TILE_ROWS, PADDED_DIM], tl.float32)
    seen = 0
    for segment in range(SEGMENTS):
        held = tl.load(lens_ptr + segment)
        row_max, row_sum, acc = _attend(
            q, k_ptr + kv_head * k_head_stride, v_ptr + kv_head * v_head_stride,
            block_table_ptr + row.to(tl.int64) * table_row_stride + segment * table_segment_stride,
            tl.maximum(first - seen, 0), tl.minimum(last - seen, held), row_max, row_sum, acc,
            k_block_stride, k_token_stride, v_block_stride, v_token_stride, scale, soft_cap,
            BLOCK_SIZE, HEAD_DIM, BLOCK_N,
        )  # fmt: skip
        seen += held
    # without keys: out 0 (of a split nothing: it is not read), lse -inf
    if SPLIT:
        stored &= (head < tl.where(first < last, GROUP, 0))[:, None]
    row_sum = tl.where(row_sum == 0.0, 1.0, row_sum)
    acc /= row_sum[:, None]
    if v_scale_ptr is not None:
        acc *= tl.load(v_scale_ptr + kv_head)
    out_at = place * out_row_stride + (kv_head * GROUP + head) * out_head_stride
    out_at += split * out_split_stride
    tl.store(
        out_ptr + out_at[:, None] + dim[None, :], acc.to(out_ptr.dtype.element_ty), mask=stored
    )
    if lse_ptr is not None:
        lse_at = (place * num_kv_heads * GROUP + kv_head * GROUP + head) * num_splits + split
        tl.store(lse_ptr + lse_at, (row_max + tl.log2(row_sum)) * LN2, mask=real)


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
    """As `ops.paged_decode`. Raises UnsupportedError before anything is launched."""
    tensors = {
        "q": q_RHD, "k_cache": k_cache, "v_cache": v_cache, "block_table": block_table,
        "seq_lens": seq_lens, "k_scale": k_scale_K, "v_scale": v_scale_K,
        "cu_seqlens_q": cu_seqlens_q, "out": out_RHD, "lse": lse_RH,
    }  # fmt: skip
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    check_decode(OP, MAX_GROUP, given, sliding_window, soft_cap)
    tokens, heads, size = q_RHD.shape
    if out_RHD is None:
        out_RHD = torch.empty((tokens, heads, size), dtype=q_RHD.dtype, device=q_RHD.device)
    if lse_RH is None and return_lse:
        lse_RH = torch.empty((tokens, heads), dtype=torch.float32, device=q_RHD.device)
    if len(seq_lens) and tokens:
        table_RSP = block_table[:, None] if block_table.dim() == 2 else block_table
        if max_seq_len is None:
            max_seq_len = table_RSP.shape[1] * table_RSP.shape[2] * k_cache.shape[1]
        _launch(
            q_RHD, k_cache, v_cache, table_RSP, seq_lens, cu_seqlens_q, k_scale_K, v_scale_K,
            out_RHD, lse_RH, sm_scale, sliding_window or NO_WINDOW, soft_cap, max_seq_len,
        )  # fmt: skip
    if return_lse:
        assert lse_RH is not None, "made above"
        return out_RHD, lse_RH
    return out_RHD


def _launch(
    q_RHD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    table_RSP: torch.Tensor,
    seq_lens: torch.Tensor,
    cu_seqlens_q: torch.Tensor | None,
    k_scale_K: torch.Tensor | None,
    v_scale_K: torch.Tensor | None,
    out_RHD: torch.Tensor,
    lse_RH: torch.Tensor | None,
    sm_scale: float,
    window: int,
    soft_cap: float | None,
    max_seq_len: int,
) -> None:
    (_, heads, size), device = q_RHD.shape, q_RHD.device
    _, block_size, kv_heads, _ = k_cache.shape
    rows, segments, _ = table_RSP.shape
    config = config_for(KERNEL, device, dtype=_word(q_RHD), kv_dtype=_word(k_cache), head_dim=size)
    num_sms = target_of(device).num_sms
    splits = num_splits(rows * kv_heads, min(max_seq_len, window), num_sms, config)
    part, part_lse, part_strides = out_RHD, lse_RH, (*out_RHD.stride()[:2], 0)
    if splits > 1:
        part = torch.empty((rows, heads, splits, size), dtype=torch.float32, device=device)
        part_lse = torch.empty((rows, heads, splits), dtype=torch.float32, device=device)
        part_strides = part.stride()[:3]
    _paged_decode_kernel[(rows, kv_heads, splits)](
        q_RHD, readable(k_cache), readable(v_cache), table_RSP, seq_lens, cu_seqlens_q, k_scale_K,
        v_scale_K, part, part_lse, *q_RHD.stride()[:2], *k_cache.stride()[:3],
        *v_cache.stride()[:3], *table_RSP.stride()[:2], *part_strides, rows, num_sms, window,
        sm_scale, soft_cap,
        HEAD_DIM=size,
        PADDED_DIM=triton.next_power_of_2(size),
        GROUP=heads // kv_heads,
        BLOCK_SIZE=block_size,
        SEGMENTS=segments,
        SPLIT=splits > 1,
        **config.arguments(),
    )  # fmt: skip
    if splits > 1:
        assert part_lse is not None, "made above"
        merge_splits(part, part_lse, out_RHD, lse_RH, cu_seqlens_q)


def num_splits(num_programs: int, longest: int, num_sms: int, config: Config) -> int:
    """Programs per row and KV head that a launch has room for, where one each would be
    `num_programs` and no row sees more than `longest` keys.

    The device uses as many of them as its shares ask for. Up to twice what an even batch needs, so
    that a long row among short ones is shared out too.
    """
    room = triton.cdiv(2 * num_sms * config.blocks["PROGRAMS_PER_SM"], num_programs)
    splits: int = max(1, min(room, longest // config.blocks["LEAST_KEYS"]))
    return splits


def _word(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _default(key: Key, target: Target) -> Config:
    """K and V of up to 32 KiB, as many keys again on their way, two programs or more to an SM."""
    room = target.shared_memory_bytes // 2 - _OTHER_BYTES
    widened = _bytes_per_key({**key, "kv_dtype": key["dtype"]})  # in registers
    decoded_wide = key["dtype"] == "float32" != key["kv_dtype"]
    most = 16384 if decoded_wide else 32768
    block = 128
    while block > 16 and (block * widened > most or 2 * block * _bytes_per_key(key) > room):
        block //= 2
    # with 4 warps these spill: products of float32 are sums of each thread's own
    warps = 8 if key["dtype"] == "float32" or int(key["head_dim"]) > 128 else 4
    return Config({"BLOCK_N": block, "LEAST_KEYS": 256, "PROGRAMS_PER_SM": 8}, warps, num_stages=5)


def _candidates(key: Key, target: Target) -> tuple[Config, ...]:
    room = target.shared_memory_bytes - _OTHER_BYTES
    return tuple(
        Config({"BLOCK_N": block, "LEAST_KEYS": 256, "PROGRAMS_PER_SM": programs}, warps, stages)
        for block in (16, 32, 64, 128)
        for stages in (3, 5, 7)
        if (stages - 1) // 2 * block * _bytes_per_key(key) <= room
        for warps in (2, 4, 8)
        for programs in (4, 8, 16)
    )


_OTHER_BYTES = 8192
"""Of shared memory, beside K and V: queries, weights, block ids."""


def _bytes_per_key(key: Key) -> int:
    """Of K and V in shared memory. Of n stages Triton (3.9) makes (n - 1) // 2 buffers, since keys
    wait for block ids."""
    itemsize: int = getattr(torch, str(key["kv_dtype"])).itemsize
    padded: int = triton.next_power_of_2(int(key["head_dim"]))
    return 2 * padded * itemsize


_WORDS = {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32", "float8_e4m3fn": "*fp8e4nv"}
_POINTERS = {"cu_seqlens_q_ptr": "*i32", "k_scale_ptr": "*fp32", "v_scale_ptr": "*fp32",
             "lse_ptr": "*fp32"}  # fmt: skip
_STRIDES = ("q_token_stride", "q_head_stride", "k_block_stride", "k_token_stride", "k_head_stride",
            "v_block_stride", "v_token_stride", "v_head_stride", "out_row_stride",
            "out_head_stride", "out_split_stride")  # fmt: skip
_NUMBERS = ("table_row_stride", "table_segment_stride", "num_rows", "num_sms", "window")


def _build(
    dtype: str, head_dim: int, group: int, block_size: int, *given: str, kv_dtype: str = "",
    bits: bool = False, soft_cap: bool = False, segments: int = 1, split: bool = True,
) -> Build:  # fmt: skip
    """`given`: those of _POINTERS that are; `bits`: the pool is read as uint8."""
    kv_dtype = kv_dtype or dtype
    pool = "*u8" if bits else _WORDS[kv_dtype]
    pointers = {name: _POINTERS[name] for name in given} | ({"lse_ptr": "*fp32"} if split else {})
    signature = {
        "q_ptr": _WORDS[dtype], "k_ptr": pool, "v_ptr": pool, "block_table_ptr": "*i32",
        "seq_lens_ptr": "*i32", "out_ptr": "*fp32" if split else _WORDS[dtype], **pointers,
        **dict.fromkeys(_STRIDES + _NUMBERS, "i32"), "sm_scale": "fp32",
    }  # fmt: skip
    constants: dict[str, object] = {name: None for name in _POINTERS if name not in pointers}
    if soft_cap:
        signature["soft_cap"] = "fp32"
    else:
        constants["soft_cap"] = None
    sizes = {"HEAD_DIM": head_dim, "PADDED_DIM": triton.next_power_of_2(head_dim), "GROUP": group,
             "BLOCK_SIZE": block_size, "SEGMENTS": segments, "SPLIT": split}  # fmt: skip
    return Build(
        key={"dtype": dtype, "kv_dtype": kv_dtype, "head_dim": head_dim},
        signature=signature,
        constants=constants | sizes,
        aligned=tuple(name for name in signature if name.endswith("_ptr") or name in _STRIDES),
        least=89 if pool == "*fp8e4nv" else 80,
    )


_SCALES = ("k_scale_ptr", "v_scale_ptr")
KERNEL = Kernel(
    name="paged_decode",
    function=_paged_decode_kernel,
    builds=(
        _build("bfloat16", 128, 4, 64),
        _build("bfloat16", 128, 4, 16, "cu_seqlens_q_ptr"),
        _build("bfloat16", 128, 7, 256, "lse_ptr", split=False),
        _build("bfloat16", 128, 8, 32, segments=4),
        _build("bfloat16", 64, 3, 16, "cu_seqlens_q_ptr"),
        _build("bfloat16", 80, 1, 64, soft_cap=True),
        _build("bfloat16", 96, 16, 64),
        _build("bfloat16", 256, 2, 64, soft_cap=True),
        _build("float16", 128, 4, 64, split=False),
        _build("float16", 256, 1, 16),
        _build("float32", 64, 3, 16),
        _build("float32", 128, 4, 64),
        _build("float32", 256, 16, 64),
        _build("bfloat16", 128, 4, 64, *_SCALES, kv_dtype="float8_e4m3fn"),
        _build("bfloat16", 128, 4, 64, *_SCALES, kv_dtype="float8_e4m3fn", bits=True),
        _build("float16", 256, 8, 16, *_SCALES, kv_dtype="float8_e4m3fn"),
        _build("float16", 80, 8, 16, *_SCALES, kv_dtype="float8_e4m3fn", bits=True),
        _build("float32", 128, 1, 64, *_SCALES, kv_dtype="float8_e4m3fn", bits=True),
    ),
    default=_default,
    candidates=_candidates,
)
KERNELS = (KERNEL, MERGE)
