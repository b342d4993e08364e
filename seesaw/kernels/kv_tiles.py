"""Tiles of KV between a device pool and memory in the order of the host tier, in one launch: the
kernel and the launch that kv_gather and kv_scatter share (formula and bytes: ops/kv_gather.py).

A tile is the block_size x head_dim numbers of one (layer, block, head, K or V): one run of bytes on
both sides. Programs go round the tiles in the order of the tier, so that over PCIe neighbours are
on the way together. How many programs there are bounds how much of the GPU a copy takes from what
computes beside it: few saturate a bus.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from seesaw.kernels.checks import expect, expect_device, expect_one_of
from seesaw.kernels.fp8 import decode_e4m3, encode_e4m3
from seesaw.kernels.kernel import Build, Config, Kernel, Key, Target
from seesaw.kernels.tuning import config_for

# Shape letters: L layers, B blocks of the pool, K KV heads, 2 (K, V), S tokens of a block, D head
# size, T blocks of the tier, P tokens of one of them, N blocks to copy.

FP8 = torch.float8_e4m3fn
WIDE = (torch.bfloat16, torch.float16, torch.float32)
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
MOST_TILES = 2**31 - 2**16  # a program counts on by PROGRAMS from the last of its tiles


@triton.jit(do_not_specialize=["num_tiles"])
def _copy_tiles_kernel(
    pool_ptr,
    tier_ptr,
    blocks_ptr,
    slots_ptr,
    scale_ptr,
    num_tiles,
    num_heads,
    num_layers,
    per_tier_block,
    tile_size,
    pool_layer_stride,
    pool_block_stride,
    pool_head_stride,
    pool_kv_stride,
    tier_block_stride,
    tier_head_stride,
    tier_layer_stride,
    tier_kv_stride,
    GATHER: tl.constexpr,
    CAST: tl.constexpr,
    BLOCK: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    wide = tl.full((), 0, tl.int64)  # offsets go beyond 2**31
    for tile in range(tl.program_id(0), num_tiles, PROGRAMS):
        kv = wide + tile % 2
        layer = wide + tile // 2 % num_layers
        head = wide + tile // 2 // num_layers % num_heads
        index = tile // 2 // num_layers // num_heads
        block = tl.load(blocks_ptr + index).to(tl.int64)
        slot = tl.load(slots_ptr + index).to(tl.int64)
        pool_tile = pool_ptr + (
            block * pool_block_stride
            + layer * pool_layer_stride
            + head * pool_head_stride
            + kv * pool_kv_stride
        )
        tier_tile = tier_ptr + (
            slot // per_tier_block * tier_block_stride
            + slot % per_tier_block * tile_size
            + head * tier_head_stride
            + layer * tier_layer_stride
            + kv * tier_kv_stride
        )
        if CAST:
            scale = 1.0
            if scale_ptr is not None:
                scale = tl.load(scale_ptr + head)
        for start in range(0, tile_size, BLOCK):
            at = start + tl.arange(0, BLOCK)
            inside = at < tile_size
            if GATHER:
                x = tl.load(pool_tile + at, mask=inside)
                if CAST:
                    x = encode_e4m3(tl.math.div_rn(x.to(tl.float32), scale))
                tl.store(tier_tile + at, x, mask=inside)
            else:
                x = tl.load(tier_tile + at, mask=inside)
                if CAST:
                    x = decode_e4m3(x, tl.float32) * scale
                    x = x.to(pool_ptr.dtype.element_ty)
                tl.store(pool_tile + at, x, mask=inside)


def copy_tiles(
    kernel: Kernel,
    pool_LBK2SD: torch.Tensor,
    tier_TKL2PD: torch.Tensor,
    blocks_N: torch.Tensor,
    slots_N: torch.Tensor,
    scale_K: torch.Tensor | None,
) -> None:
    """Launch `kernel` (`kv_gather` or `kv_scatter`). Raises UnsupportedError."""
    op = kernel.op
    _check(op, pool_LBK2SD, tier_TKL2PD, blocks_N, slots_N, scale_K)
    layers, _, heads, _, block_size, head_dim = pool_LBK2SD.shape
    num_tiles = len(blocks_N) * heads * layers * 2
    expect(op, "tiles of one launch", num_tiles, f"up to {MOST_TILES}", num_tiles <= MOST_TILES)
    if not num_tiles:
        return
    cast = pool_LBK2SD.dtype != tier_TKL2PD.dtype
    # as integers: no bit changes on the way, whatever it means
    tier = tier_TKL2PD.view(INTEGERS[tier_TKL2PD.itemsize])
    pool = pool_LBK2SD if cast else pool_LBK2SD.view(tier.dtype)
    config = config_for(
        kernel, pool.device, side="host" if tier.device != pool.device else "device"
    )  # fmt: skip
    programs = min(config.blocks["PROGRAMS"], num_tiles)
    _copy_tiles_kernel[(programs,)](
        pool,
        tier,
        blocks_N,
        slots_N,
        scale_K,
        num_tiles,
        heads,
        layers,
        tier.shape[4] // block_size,
        block_size * head_dim,
        *(pool.stride(dim) for dim in (0, 1, 2, 3)),
        *(tier.stride(dim) for dim in (0, 1, 2, 3)),
        GATHER=op == "kv_gather",
        CAST=cast,
        **config.arguments(),
    )


def _check(
    op: str, pool: torch.Tensor, tier: torch.Tensor, blocks: torch.Tensor, slots: torch.Tensor,
    scale: torch.Tensor | None,
) -> None:  # fmt: skip
    expect_device(op, pool.device)
    expect_one_of(op, "dims of pool and tier", (pool.dim(), tier.dim()), [(6, 6)])
    expect_one_of(op, "dtype of pool", pool.dtype, (*WIDE, FP8))
    allowed = (pool.dtype,) if pool.dtype == FP8 else (pool.dtype, FP8)
    kind = str(pool.dtype).removeprefix("torch.")
    expect_one_of(op, f"dtype of tier beside a pool of {kind}", tier.dtype, allowed)
    on_host = pool.is_cuda and tier.device.type == "cpu" and tier.is_pinned()
    expect(op, "device of tier", tier.device, f"{pool.device}, or page-locked memory of the host",
           tier.device == pool.device or on_host)  # fmt: skip
    layers, _, heads, two, block_size, head_dim = pool.shape
    expected = [tier.shape[0], heads, layers, 2, tier.shape[4], head_dim]
    expect(op, "shape of tier", list(tier.shape), expected, list(tier.shape) == expected)
    expect(op, "dim 3 of pool", two, 2, two == 2)
    expect(op, "tokens of a tier block", tier.shape[4], f"a multiple of {block_size}",
           block_size > 0 and tier.shape[4] % block_size == 0)  # fmt: skip
    for name, x in (("pool", pool), ("tier", tier)):
        expect(op, f"strides of {name}", x.stride(), f"(..., {head_dim}, 1): tiles without gaps",
               x.stride()[4:] == (head_dim, 1) or not x.numel())  # fmt: skip
    for name, ids in (("blocks", blocks), ("slots", slots)):
        expect_one_of(op, f"dtype of {name}", ids.dtype, [torch.int32])
        expect(op, f"device of {name}", ids.device, pool.device, ids.device == pool.device)
        expect(op, f"shape of {name}", list(ids.shape), [len(blocks)],
               ids.shape == (len(blocks),) and ids.is_contiguous())  # fmt: skip
    if scale is not None:
        expect(op, "scale", "one", "none where nothing is cast", pool.dtype != tier.dtype)
        expect_one_of(op, "dtype of scale", scale.dtype, [torch.float32])
        expect(op, "device of scale", scale.device, pool.device, scale.device == pool.device)
        expect(op, "shape of scale", list(scale.shape), [heads],
               scale.shape == (heads,) and scale.is_contiguous())  # fmt: skip


def default(key: Key, target: Target) -> Config:
    """Over a bus 32 programs have some 256 KB under way, twice what PCIe 5 holds between request
    and answer; within the device all of it is to be busy for as short as it takes."""
    if key["side"] == "host":
        return Config({"BLOCK": 4096, "PROGRAMS": 32})
    return Config({"BLOCK": 4096, "PROGRAMS": 4 * target.num_sms})


def candidates(key: Key, target: Target) -> tuple[Config, ...]:
    per_side = (8, 16, 32, 64) if key["side"] == "host" else (2, 4, 8)
    unit = 1 if key["side"] == "host" else target.num_sms
    return tuple(
        Config({"BLOCK": block, "PROGRAMS": unit * programs}, num_warps=num_warps)
        for programs in per_side
        for block in (2048, 4096, 8192)
        for num_warps in (4, 8)
    )


def builds(gather: bool) -> tuple[Build, ...]:
    return tuple(
        _build(side, pool, tier, scaled, gather)
        for side in ("host", "device")
        for pool, tier, scaled in (
            ("*i16", "*i16", False),
            ("*i32", "*i32", False),
            ("*u8", "*u8", False),
            ("*bf16", "*u8", True),
            ("*fp16", "*u8", False),
            ("*fp32", "*u8", True),
        )
    )


def _build(side: str, pool: str, tier: str, scaled: bool, gather: bool) -> Build:
    sizes = ("num_tiles", "num_heads", "num_layers", "per_tier_block", "tile_size")
    strides = [
        name for name in _copy_tiles_kernel.arg_names if name.endswith("_stride")
    ]  # fmt: skip
    signature = {"pool_ptr": pool, "tier_ptr": tier, "blocks_ptr": "*i32", "slots_ptr": "*i32"}
    signature |= dict.fromkeys(sizes, "i32") | dict.fromkeys(strides, "i64")
    constants: dict[str, object] = {"GATHER": gather, "CAST": pool != tier}
    if scaled:
        signature["scale_ptr"] = "*fp32"
    else:
        constants["scale_ptr"] = None
    return Build(
        key={"side": side},
        signature=signature,
        constants=constants,
        aligned=("pool_ptr", "tier_ptr", "tile_size", *strides),
    )
