"""Norms of queries and keys, rotation and KV write in one launch (formula and bytes:
ops/rope_kv_write.py).

The heads of all tokens are one list of rows; a program takes `BLOCK` of them, each in two halves,
which is what rotation pairs. All is computed in float32 and rounded where the ops that this is made
of round: after the norm and after the rotation.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from seesaw.kernels.checks import FLOATS, expect, expect_one_of, expect_tensors
from seesaw.kernels.fp8 import encode_e4m3
from seesaw.kernels.kernel import Build, Config, Kernel, Key, Target
from seesaw.kernels.tuning import config_for

# Shape letters: T tokens, K KV heads, G query heads per KV head, J = G + 2, D head_dim, F = D / 2.

OP = "rope_kv_write"
_MAX_HEAD_DIM = 512


@triton.jit(do_not_specialize=["num_rows"])
def _rope_kv_write_kernel(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    k_cache_ptr,
    v_cache_ptr,
    slot_ptr,
    q_norm_ptr,
    k_norm_ptr,
    k_scale_ptr,
    v_scale_ptr,
    num_rows,
    qkv_token_stride,
    qkv_head_stride,
    qkv_row_stride,
    cos_stride,
    sin_stride,
    k_block_stride,
    k_slot_stride,
    k_head_stride,
    v_block_stride,
    v_slot_stride,
    v_head_stride,
    eps,
    KV_HEADS: tl.constexpr,
    JOINED: tl.constexpr,
    HALF: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    PLUS_ONE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = row < num_rows
    token = (row // (KV_HEADS * JOINED)).to(tl.int64)
    head = row // JOINED % KV_HEADS
    part = row % JOINED  # queries, then the key, then the value
    is_key = part == JOINED - 2
    is_value = part == JOINED - 1
    dim = tl.arange(0, PADDED)
    inside = there[:, None] & (dim < HALF)[None, :]
    offset = token * qkv_token_stride + head.to(tl.int64) * qkv_head_stride + part * qkv_row_stride
    first_ptr = qkv_ptr + offset[:, None] + dim[None, :]
    raw_first = tl.load(first_ptr, mask=inside, other=0.0)
    raw_second = tl.load(first_ptr + HALF, mask=inside, other=0.0)
    dtype = raw_first.dtype
    first, second = raw_first.to(tl.float32), raw_second.to(tl.float32)
    if q_norm_ptr is not None:
        mean = tl.sum(first * first + second * second, 1) / (2 * HALF)
        scale = tl.rsqrt(mean + eps)[:, None]
        of_q = inside & (part < JOINED - 2)[:, None]
        of_k = inside & is_key[:, None]
        weight = tl.load(q_norm_ptr + dim[None, :], mask=of_q, other=0.0).to(tl.float32)
        weight += tl.load(k_norm_ptr + dim[None, :], mask=of_k, other=0.0).to(tl.float32)
        other = tl.load(q_norm_ptr + HALF + dim[None, :], mask=of_q, other=0.0).to(tl.float32)
        other += tl.load(k_norm_ptr + HALF + dim[None, :], mask=of_k, other=0.0).to(tl.float32)
        if PLUS_ONE:
            weight += 1.0
            other += 1.0
        first = (first * scale * weight).to(dtype).to(tl.float32)
        second = (second * scale * other).to(dtype).to(tl.float32)
    turns = inside & (part < JOINED - 1)[:, None]
    cos = tl.load(cos_ptr + token[:, None] * cos_stride + dim[None, :], mask=turns, other=0.0)
    sin = tl.load(sin_ptr + token[:, None] * sin_stride + dim[None, :], mask=turns, other=0.0)
    cos, sin = cos.to(dtype).to(tl.float32), sin.to(dtype).to(tl.float32)
    turned_first = (first * cos - second * sin).to(dtype)
    turned_second = (second * cos + first * sin).to(dtype)
    tl.store(first_ptr, turned_first, mask=turns)
    tl.store(first_ptr + HALF, turned_second, mask=turns)

    out_first = tl.where(is_value[:, None], raw_first, turned_first)
    out_second = tl.where(is_value[:, None], raw_second, turned_second)
    slot = tl.load(slot_ptr + token, mask=there & (part >= JOINED - 2), other=-1)
    stored = inside & (slot >= 0)[:, None]
    block, place = slot // BLOCK_SIZE, slot % BLOCK_SIZE
    if k_cache_ptr.dtype.element_ty == tl.uint8:
        k_over = tl.full((BLOCK,), 1.0, tl.float32)
        v_over = tl.full((BLOCK,), 1.0, tl.float32)
        if k_scale_ptr is not None:
            k_over = tl.load(k_scale_ptr + head, mask=there, other=1.0)
        if v_scale_ptr is not None:
            v_over = tl.load(v_scale_ptr + head, mask=there, other=1.0)
        over = tl.where(is_value, v_over, k_over)[:, None]
        out_first = encode_e4m3(tl.div_rn(out_first.to(tl.float32), over))
        out_second = encode_e4m3(tl.div_rn(out_second.to(tl.float32), over))
    k_to = block * k_block_stride + place * k_slot_stride + head.to(tl.int64) * k_head_stride
    k_to_ptr = k_cache_ptr + k_to[:, None] + dim[None, :]
    k_mask = stored & is_key[:, None]
    tl.store(k_to_ptr, out_first, mask=k_mask)
    tl.store(k_to_ptr + HALF, out_second, mask=k_mask)
    v_to = block * v_block_stride + place * v_slot_stride + head.to(tl.int64) * v_head_stride
    v_to_ptr = v_cache_ptr + v_to[:, None] + dim[None, :]
    v_mask = stored & is_value[:, None]
    tl.store(v_to_ptr, out_first, mask=v_mask)
    tl.store(v_to_ptr + HALF, out_second, mask=v_mask)


def rope_kv_write(
    qkv_TKJD: torch.Tensor,
    cos_TF: torch.Tensor,
    sin_TF: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping_T: torch.Tensor,
    *,
    q_norm_D: torch.Tensor | None = None,
    k_norm_D: torch.Tensor | None = None,
    eps: float = 0.0,
    plus_one: bool = False,
    k_scale_K: torch.Tensor | None = None,
    v_scale_K: torch.Tensor | None = None,
) -> None:
    """As `ops.rope_kv_write`. Slots are not checked: they are on the device. Raises
    UnsupportedError."""
    _check(qkv_TKJD, cos_TF, sin_TF, k_cache, v_cache, slot_mapping_T)
    _check_weights(qkv_TKJD, q_norm_D, k_norm_D, k_scale_K, v_scale_K)
    tokens, kv_heads, joined, head_dim = qkv_TKJD.shape
    num_rows = tokens * kv_heads * joined
    if not num_rows:
        return
    if k_cache.dtype == torch.float8_e4m3fn:
        k_cache, v_cache = k_cache.view(torch.uint8), v_cache.view(torch.uint8)
    config = config_for(KERNEL, qkv_TKJD.device, head_dim=head_dim)
    _rope_kv_write_kernel[(triton.cdiv(num_rows, config.blocks["BLOCK"]),)](
        qkv_TKJD,
        cos_TF,
        sin_TF,
        k_cache,
        v_cache,
        slot_mapping_T,
        q_norm_D,
        k_norm_D,
        k_scale_K,
        v_scale_K,
        num_rows,
        *qkv_TKJD.stride()[:3],
        cos_TF.stride(0),
        sin_TF.stride(0),
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        eps,
        KV_HEADS=kv_heads,
        JOINED=joined,
        HALF=head_dim // 2,
        PADDED=triton.next_power_of_2(head_dim // 2),
        BLOCK_SIZE=k_cache.shape[1],
        PLUS_ONE=plus_one,
        **config.arguments(),
    )


def _check(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    expect_tensors(OP, FLOATS, qkv=qkv)
    expect_tensors(OP, {torch.float32: None, qkv.dtype: None}, cos=cos, sin=sin)
    expect_tensors(OP, {qkv.dtype: None, torch.float8_e4m3fn: None}, k_cache=k_cache,
                   v_cache=v_cache)  # fmt: skip
    expect_tensors(OP, (torch.int64,), slot_mapping=slots)
    for name, one in {"cos": cos, "k_cache": k_cache, "slot_mapping": slots}.items():
        expect(OP, f"device of {name}", one.device, qkv.device, one.device == qkv.device)
    expect(OP, "dims of qkv", qkv.dim(), 4, qkv.dim() == 4)
    tokens, kv_heads, joined, head_dim = qkv.shape
    expect(OP, "rows of qkv", list(qkv.shape[:3]), "[T, K, G + 2], together below 2^31",
           joined >= 3 and tokens * kv_heads * joined < 2**31)  # fmt: skip
    expect(OP, "head_dim", head_dim, f"an even number up to {_MAX_HEAD_DIM}",
           head_dim % 2 == 0 and 2 <= head_dim <= _MAX_HEAD_DIM)  # fmt: skip
    for name, angles in {"cos": cos, "sin": sin}.items():
        wanted = (tokens, head_dim // 2)
        expect(OP, f"shape of {name}", list(angles.shape), list(wanted), angles.shape == wanted)
    shape = list(k_cache.shape)
    fits = (
        k_cache.shape == v_cache.shape and k_cache.dim() == 4 and shape[2:] == [kv_heads, head_dim]
    )
    expect(OP, "shapes of the caches", (shape, list(v_cache.shape)),
           f"[num_blocks, block_size, {kv_heads}, {head_dim}] for both", fits)  # fmt: skip
    expect(OP, "shape of slot_mapping", list(slots.shape), [tokens], slots.shape == (tokens,))
    tensors = {"qkv": qkv, "cos": cos, "sin": sin, "k_cache": k_cache, "v_cache": v_cache,
               "slot_mapping": slots}  # fmt: skip
    for name, one in tensors.items():
        close = one.stride(-1) == 1 or one.shape[-1] <= 1
        expect(OP, f"distance of the elements of {name}", one.stride(-1), 1, close)


def _check_weights(
    qkv: torch.Tensor,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
) -> None:
    expect(OP, "norms", "one of two", "both or none", (q_norm is None) == (k_norm is None))
    _, kv_heads, _, head_dim = qkv.shape
    for name, one, dtype, size in (
        ("q_norm", q_norm, qkv.dtype, head_dim),
        ("k_norm", k_norm, qkv.dtype, head_dim),
        ("k_scale", k_scale, torch.float32, kv_heads),
        ("v_scale", v_scale, torch.float32, kv_heads),
    ):
        if one is not None:
            expect_one_of(OP, f"dtype of {name}", one.dtype, (dtype,))
            expect(OP, f"device of {name}", one.device, qkv.device, one.device == qkv.device)
            expect(OP, f"shape of {name}", list(one.shape), [size], one.shape == (size,))
            close = one.stride(0) == 1 or size == 1
            expect(OP, f"distance of the elements of {name}", one.stride(0), 1, close)


def _default(key: Key, target: Target) -> Config:
    half = triton.next_power_of_2(int(key["head_dim"]) // 2)
    return Config({"BLOCK": max(1, 1024 // half)}, num_warps=4)


def _candidates(key: Key, target: Target) -> tuple[Config, ...]:
    half = triton.next_power_of_2(int(key["head_dim"]) // 2)
    return tuple(
        Config({"BLOCK": elements // half}, num_warps=num_warps)
        for elements in (256, 512, 1024, 2048)
        for num_warps in (1, 2, 4, 8)
        if elements >= half and 32 <= elements // num_warps <= 1024
    )


def _build(
    head_dim: int,
    dtype: str,
    joined: int,
    block_size: int,
    kv_heads: int = 8,
    *,
    norm: bool = False,
    plus_one: bool = False,
    cache: str | None = None,
) -> Build:
    pointers = {"qkv_ptr": dtype, "cos_ptr": dtype, "sin_ptr": dtype, "slot_ptr": "*i64",
                "k_cache_ptr": cache or dtype, "v_cache_ptr": cache or dtype}  # fmt: skip
    constants: dict[str, object] = {
        "KV_HEADS": kv_heads, "JOINED": joined, "HALF": head_dim // 2,
        "PADDED": triton.next_power_of_2(head_dim // 2), "BLOCK_SIZE": block_size,
        "PLUS_ONE": plus_one,
    }  # fmt: skip
    if norm:
        pointers |= {"q_norm_ptr": dtype, "k_norm_ptr": dtype}
    else:
        constants |= {"q_norm_ptr": None, "k_norm_ptr": None}
    if cache is not None:
        pointers |= {"k_scale_ptr": "*fp32", "v_scale_ptr": "*fp32"}
    else:
        constants |= {"k_scale_ptr": None, "v_scale_ptr": None}
    strides = ["qkv_token_stride", "qkv_head_stride", "qkv_row_stride", "cos_stride", "sin_stride"]
    strides += [f"{which}_{of}_stride" for which in "kv" for of in ("block", "slot", "head")]
    signature = {**pointers, "num_rows": "i32", **dict.fromkeys(strides, "i32"), "eps": "fp32"}
    return Build(
        key={"head_dim": head_dim},
        signature=signature,
        constants=constants,
        aligned=(*pointers, *strides),
    )


KERNEL = Kernel(
    name="rope_kv_write",
    function=_rope_kv_write_kernel,
    builds=(
        _build(64, "*bf16", 9, 16),
        _build(80, "*bf16", 3, 16, 32),
        _build(96, "*fp16", 3, 256, 32),
        _build(128, "*bf16", 6, 16),
        _build(128, "*bf16", 10, 64, norm=True),
        _build(128, "*fp16", 6, 32, norm=True),
        _build(128, "*bf16", 6, 64, norm=True, cache="*u8"),
        _build(128, "*fp16", 6, 16, cache="*u8"),
        _build(256, "*bf16", 4, 64, 1, norm=True, plus_one=True),
        _build(128, "*fp32", 6, 16, norm=True),
    ),
    default=_default,
    candidates=_candidates,
)
KERNELS = (KERNEL,)
