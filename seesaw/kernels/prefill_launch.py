"""What the launchers of both forms of prefill attention share: refusals, the launch, builds for the
compile check and configurations.
"""

from __future__ import annotations

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from seesaw.kernels.checks import FLOATS, expect, expect_one_of, expect_tensors
from seesaw.kernels.fp8 import readable
from seesaw.kernels.kernel import Build, Config, Key, Target
from seesaw.kernels.prefill import prefill_kernel

# Shape letters: T tokens, H query heads, K KV heads, G = H / K, D head_dim, R rows.

MAX_GROUP = 16
LARGE_SHARED_BYTES = 200 << 10
TRITON_TYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "int32": "i32",
                "float8_e4m3fn": "fp8e4nv", "uint8": "u8"}  # fmt: skip
ITEM_BYTES: dict[object, int] = {"bfloat16": 2, "float16": 2, "float32": 4, "float8_e4m3fn": 1}


def check_rows(
    op: str,
    q_THD: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    *,
    sm_scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
) -> None:
    """What both forms refuse; `k` and `v` are `[.., K, D]`. Raises UnsupportedError."""
    expect(op, "shape of q", list(q_THD.shape), "[T, H, D]", q_THD.dim() == 3)
    heads, size = q_THD.shape[1:]
    expect_tensors(op, FLOATS, q=q_THD)
    for name, tensor in (("k", k), ("v", v)):
        expect(op, f"device of {name}", tensor.device, q_THD.device, tensor.device == q_THD.device)
        expect(
            op, f"head_dim of {name}", tensor.shape[-1], f"{size}, as q", tensor.shape[-1] == size
        )
        expect(op, f"shape of {name}", list(tensor.shape), f"{list(k.shape)}, as k",
               tensor.shape == k.shape)  # fmt: skip
        expect(op, f"dtype of {name}", tensor.dtype, f"{k.dtype}, as k", tensor.dtype == k.dtype)
    for name, tensor in (("q", q_THD), ("k", k), ("v", v)):
        expect(
            op, f"stride of the last dim of {name}", tensor.stride(-1), 1, tensor.stride(-1) == 1
        )
    expect(op, "head_dim", size, "16 to 256 in steps of 16", size in range(16, 257, 16))
    kv_heads = k.shape[-2]
    group = f"H = K * G with a group G of 1 to {MAX_GROUP}"
    expect(op, "query and KV heads", (heads, kv_heads), group,
           kv_heads > 0 and heads % kv_heads == 0 and heads // kv_heads in range(1, MAX_GROUP + 1)
           )  # fmt: skip
    expect_ints(op, "cu_seqlens", cu_seqlens, q_THD, (None,))
    expect(op, "length of cu_seqlens", len(cu_seqlens), "R + 1", len(cu_seqlens) >= 1)
    expect(op, "sm_scale", sm_scale, "above 0", sm_scale > 0)
    expect(op, "sliding_window", sliding_window, "None, or at least 1",
           sliding_window is None or sliding_window >= 1)  # fmt: skip
    expect(op, "soft_cap", soft_cap, "None, or above 0", soft_cap is None or soft_cap > 0)


def expect_ints(
    op: str, name: str, tensor: torch.Tensor, q_THD: torch.Tensor, shape: tuple[int | None, ...]
) -> None:
    """int32 where q is, of `shape` (None: any), the last dim contiguous."""
    expect_one_of(op, f"dtype of {name}", tensor.dtype, (torch.int32,))
    expect(op, f"device of {name}", tensor.device, q_THD.device, tensor.device == q_THD.device)
    fits = tensor.dim() == len(shape) and all(
        extent in (None, got) for extent, got in zip(shape, tensor.shape, strict=True)
    )
    expect(op, f"shape of {name}", list(tensor.shape), list(shape), fits)
    expect(op, f"stride of the last dim of {name}", tensor.stride(-1), 1,
           tensor.stride(-1) == 1 or tensor.shape[-1] <= 1)  # fmt: skip


def rows_of(max_seqlen: int, group: int) -> int:
    """The class of rows that a configuration is for: BLOCK_M where the longest row has no more."""
    return next((rows for rows in (16, 64) if max_seqlen * group <= rows), 128)


def launch(
    config: Config,
    q_THD: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out_THD: torch.Tensor,
    lse_TH: torch.Tensor | None,
    cu_seqlens: torch.Tensor,
    *,
    sm_scale: float,
    soft_cap: float | None,
    sliding_window: int | None,
    block_table: torch.Tensor | None = None,
    seq_lens: torch.Tensor | None = None,
    k_scale_K: torch.Tensor | None = None,
    v_scale_K: torch.Tensor | None = None,
    skip_single: bool = False,
) -> None:
    """`k`, `v`: `[T, K, D]`, or with `block_table` `[num_blocks, block_size, K, D]`. All checked."""
    num_tokens, heads, size = q_THD.shape
    num_rows, kv_heads = len(cu_seqlens) - 1, k.shape[-2]
    if num_rows == 0 or num_tokens == 0:
        return
    group = heads // kv_heads
    k, v = readable(k), readable(v)
    block_size = None if block_table is None else k.shape[1]
    block_d = triton.next_power_of_2(size)
    use_tma = bool(config.blocks["USE_TMA"]) and k.dtype == q_THD.dtype
    use_tma = use_tma and all(_describable(x, config.blocks["BLOCK_N"]) for x in (k, v))
    num_tiles = num_tokens // (config.blocks["BLOCK_M"] // group) + num_rows
    k_strides, v_strides = ((0, *x.stride())[-4:-1] for x in (k, v))
    arguments = config.arguments() | {"USE_TMA": int(use_tma)}
    prefill_kernel[(num_tiles * kv_heads,)](
        q_THD,
        _descriptor(k, arguments["BLOCK_N"], block_d) if use_tma else k,
        _descriptor(v, arguments["BLOCK_N"], block_d) if use_tma else v,
        out_THD,
        lse_TH,
        block_table,
        cu_seqlens,
        seq_lens,
        k_scale_K,
        v_scale_K,
        num_rows,
        kv_heads,
        sm_scale,
        soft_cap,
        sliding_window,
        *q_THD.stride()[:2],
        *out_THD.stride()[:2],
        *k_strides,
        *v_strides,
        0 if block_table is None else block_table.stride(0),
        GROUP=group,
        HEAD_DIM=size,
        BLOCK_SIZE=block_size,
        SKIP_SINGLE=skip_single,
        BLOCK_D=block_d,
        **arguments,
    )


def _describable(x: torch.Tensor, block_n: int) -> bool:
    """Whether a descriptor can name its tiles: what the copy engine asks of addresses, and no tile
    over two blocks of a pool."""
    aligned = x.data_ptr() % 16 == 0 and all(n * x.itemsize % 16 == 0 for n in x.stride()[:-1])
    return aligned and (x.dim() == 3 or x.shape[1] % block_n == 0)


def _descriptor(x: torch.Tensor, block_n: int, block_d: int) -> TensorDescriptor:
    """Of `[K, T, D]`, or `[num_blocks, K, block_size, D]`: the head before the tokens, so that a
    tile is the last two dims. Columns past D are read as 0."""
    swapped = x.transpose(-3, -2)
    block = [*[1] * (x.dim() - 2), block_n, block_d]
    return TensorDescriptor(x, list(swapped.shape), list(swapped.stride()), block)


def default(key: Key, target: Target) -> Config:
    """By rule, where nothing is tuned: the largest tiles that fit and do not spill."""
    rows, size = int(key["rows"]), triton.next_power_of_2(int(key["head_dim"]))
    if key["dtype"] == "float32":  # multiplied without tensor cores, from registers
        return Config(_blocks(min(rows, 32), 32 if size <= 64 else 16, False), 4, 1)
    block_m, block_n, num_warps, num_stages = _tile(size, target)
    if rows < block_m:
        block_m, num_warps = rows, 4
    use_tma = target.has_tma and size in (64, 128) and _tma_fits(key, block_n)
    return Config(_blocks(block_m, block_n, use_tma), num_warps, num_stages)


def _tile(size: int, target: Target) -> tuple[int, int, int, int]:
    """(BLOCK_M, BLOCK_N, warps, stages) for rows enough, in 16 bits. Not measured: tiles that fill
    the tensor cores (64 rows per 4 warps on sm_90 and sm_100), as deep as the memory allows."""
    if target.shared_memory_bytes >= LARGE_SHARED_BYTES:
        return {64: (128, 128, 4, 3), 128: (128, 128, 8, 2), 256: (128, 64, 8, 2)}[max(64, size)]
    if target.capability == 80:
        return {64: (128, 64, 4, 3), 128: (128, 64, 8, 3), 256: (64, 32, 4, 2)}[max(64, size)]
    return {64: (128, 64, 4, 3), 128: (128, 32, 8, 2), 256: (64, 32, 4, 1)}[max(64, size)]


def candidates(key: Key, target: Target) -> tuple[Config, ...]:
    """Tiles for the tuner to try: those whose keys and values fit the target's shared memory."""
    rows, size = int(key["rows"]), triton.next_power_of_2(int(key["head_dim"]))
    wide = key["dtype"] == "float32"
    block_ms, block_ns = ((16, 32, 64), (16, 32)) if wide else ((16, 64, 128), (32, 64, 128))
    return tuple(
        Config(_blocks(block_m, block_n, use_tma), num_warps, num_stages)
        for block_m in block_ms
        if block_m <= max(rows, 16)
        for block_n in block_ns
        for num_warps in (4, 8)
        for num_stages in ((1, 2) if wide else (2, 3, 4))
        for use_tma in (False, True)
        if not use_tma or (target.has_tma and _tma_fits(key, block_n))
        if _shared_bytes(key, size, block_m, block_n, num_stages) <= target.shared_memory_bytes
    )


def _blocks(block_m: int, block_n: int, use_tma: bool) -> dict[str, int]:
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "USE_TMA": int(use_tma)}


def _tma_fits(key: Key, block_n: int) -> bool:
    """Whether descriptors may be used, as far as the key tells."""
    same = key.get("kv_dtype", key["dtype"]) == key["dtype"] != "float32"
    return same and int(key.get("block_size", block_n)) % block_n == 0


def _shared_bytes(key: Key, size: int, block_m: int, block_n: int, num_stages: int) -> int:
    """About what a program needs: its queries, and keys and values of each stage."""
    num_bytes = ITEM_BYTES[key["dtype"]]
    kv_bytes = ITEM_BYTES[key.get("kv_dtype", key["dtype"])]
    return size * (block_m * num_bytes + 2 * num_stages * block_n * kv_bytes)


def build(
    dtype: str,
    head_dim: int,
    group: int,
    *,
    rows: int = 128,
    block_size: int | None = None,
    kv_dtype: str | None = None,
    window: bool = False,
    soft_cap: bool = False,
    lse: bool = False,
    skip_single: bool = False,
) -> Build:
    """A specialisation; with `block_size` over paged keys. `kv_dtype` "uint8": fp8 to decode."""
    kv_dtype = kv_dtype or dtype
    key: dict[str, int | str] = {"dtype": dtype}
    if block_size is not None:
        stored = "float8_e4m3fn" if kv_dtype == "uint8" else kv_dtype
        key |= {"kv_dtype": stored, "block_size": block_size}
    key |= {"head_dim": head_dim, "rows": rows}
    types = {"q_ptr": dtype, "k": kv_dtype, "v": kv_dtype, "out_ptr": dtype,
             "cu_seqlens_ptr": "int32"}  # fmt: skip
    absent: dict[str, object] = {}
    for name, there, pointed in (
        ("lse_ptr", lse, "float32"),
        ("block_table_ptr", block_size is not None, "int32"),
        ("seq_lens_ptr", block_size is not None, "int32"),
        ("k_scale_ptr", kv_dtype != dtype, "float32"),
        ("v_scale_ptr", kv_dtype != dtype, "float32"),
    ):
        if there:
            types[name] = pointed
        else:
            absent[name] = None
    signature = {name: f"*{TRITON_TYPES[pointed]}" for name, pointed in types.items()}
    strides = [name for name in prefill_kernel.arg_names if name.endswith("_stride")]
    aligned = (*signature, *strides)
    signature |= dict.fromkeys(("num_rows", "num_kv_heads", *strides), "i32")
    signature["sm_scale"] = "fp32"
    for name, there, number in (("window", window, "i32"), ("soft_cap", soft_cap, "fp32")):
        if there:
            signature[name] = number
        else:
            absent[name] = None
    block_d = triton.next_power_of_2(head_dim)
    ones = "1," if block_size is None else "1,1,"
    tile = f"tensordesc<{TRITON_TYPES[kv_dtype]}[{ones}{{BLOCK_N}},{block_d}]>"
    return Build(
        key=key,
        signature=signature,
        descriptors={"k": tile, "v": tile},
        constants={
            **absent, "GROUP": group, "HEAD_DIM": head_dim, "BLOCK_SIZE": block_size,
            "SKIP_SINGLE": skip_single, "BLOCK_D": block_d,
        },
        aligned=aligned,
        least=89 if kv_dtype == "float8_e4m3fn" else 80,
    )  # fmt: skip
