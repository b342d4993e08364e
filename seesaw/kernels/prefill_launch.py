"""What both forms of prefill attention share: the launch, configurations, and builds for the
compile check.
"""

from __future__ import annotations

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from seesaw.kernels.fp8 import readable
from seesaw.kernels.kernel import Build, Config, Key, Target
from seesaw.kernels.prefill import prefill_kernel

# Shape letters: T tokens, H query heads, K KV heads, G = H / K, D head_dim, R rows.

LARGE_SHARED_BYTES = 200 << 10
TRITON_TYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "int32": "i32",
                "float8_e4m3fn": "fp8e4nv", "uint8": "u8"}  # fmt: skip
ITEM_BYTES: dict[object, int] = {"bfloat16": 2, "float16": 2, "float32": 4, "float8_e4m3fn": 1}


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
    """`k`, `v`: `[T, K, D]`, or with `block_table` `[num_blocks, block_size, K, D]`; checked."""
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
    """By rule, where nothing is tuned: large tiles that fit and do not spill. Not measured."""
    rows, size = int(key["rows"]), max(64, triton.next_power_of_2(int(key["head_dim"])))
    if key["dtype"] == "float32":  # multiplied without tensor cores
        block_m, block_n = {64: (32, 32), 128: (32, 16), 256: (16, 16)}[size]
        return Config(_blocks(min(rows, block_m), block_n, False), 4, 1)
    block_m, block_n, num_warps, num_stages = _tile(rows, size, key, target)
    use_tma = target.has_tma and int(key["head_dim"]) in (64, 128) and _tma_fits(key, block_n)
    return Config(_blocks(block_m, block_n, use_tma), num_warps, num_stages)


def _tile(rows: int, size: int, key: Key, target: Target) -> tuple[int, int, int, int]:
    """(BLOCK_M, BLOCK_N, warps, stages) in 16 bits. With fewer than 3 stages the keys of an
    iteration are asked for at the end of the one before, too late to hide their way."""
    if rows == 16:
        return (16, 32, 4, 2) if size == 256 else (16, 64, 4, 3)
    large = target.shared_memory_bytes >= LARGE_SHARED_BYTES
    if rows == 64:
        narrow = {64: 64, 128: 32, 256: 16}[size]
        wide = {64: 64, 128: 64, 256: 32}[size]
        return 64, wide if large else narrow, 8 if size == 256 else 4, 3
    if not large:
        return {64: (128, 64, 8, 3), 128: (128, 32, 8, 3), 256: (64, 16, 8, 3)}[size]
    if size == 128:  # pointers to 128 keys, most of all of several blocks, or decoding them, spill
        whole = int(key["head_dim"]) == 128 and _tma_fits(key, 128)
        return 128, 128 if whole else 64, 8, 3
    return {64: (128, 64, 4, 3), 256: (128, 32, 8, 3)}[size]


def candidates(key: Key, target: Target) -> tuple[Config, ...]:
    """Tiles for the tuner to try: those whose keys and values fit the target's shared memory."""
    rows, size = int(key["rows"]), triton.next_power_of_2(int(key["head_dim"]))
    block_ms: tuple[int, ...] = (16,) if rows == 16 else (64, 128)
    block_ns: tuple[int, ...] = (16, 32, 64) if size == 256 else (32, 64, 128)
    stages: tuple[int, ...] = (2, 3, 4)
    if key["dtype"] == "float32":
        block_ms, block_ns, stages = (16, 32, 64), (16, 32), (1, 2)
    return tuple(
        Config(_blocks(block_m, block_n, use_tma), num_warps, num_stages)
        for block_m in block_ms
        if block_m <= rows
        for block_n in block_ns
        for num_warps in ((4,) if block_m == 16 else (4, 8))
        for num_stages in stages
        for use_tma in (False, True)
        if not use_tma or (target.has_tma and _tma_fits(key, block_n))
        if _shared_bytes(key, block_m, block_n, num_stages, target) <= target.shared_memory_bytes
    )


def _blocks(block_m: int, block_n: int, use_tma: bool) -> dict[str, int]:
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "USE_TMA": int(use_tma)}


def _tma_fits(key: Key, block_n: int) -> bool:
    """Whether descriptors may be used, as far as the key tells."""
    same = key.get("kv_dtype", key["dtype"]) == key["dtype"] != "float32"
    return same and int(key.get("block_size", block_n)) % block_n == 0


def _shared_bytes(key: Key, block_m: int, block_n: int, num_stages: int, target: Target) -> int:
    """About what a program needs: its queries, and the tiles in flight. Where the tensor cores read
    shared memory by themselves a stage more is held, since they may still be reading it."""
    held = num_stages if target.capability in (90, 100) else max(1, num_stages - 1)
    num_bytes = ITEM_BYTES[key["dtype"]]
    kv_bytes = ITEM_BYTES[key.get("kv_dtype", key["dtype"])]
    size = triton.next_power_of_2(int(key["head_dim"]))
    return int(size * (block_m * num_bytes + 2 * held * block_n * kv_bytes))


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
