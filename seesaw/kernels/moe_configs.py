"""Which blocks the kernels of moe_mlp run with, and the specialisations that are compiled.

Keys of the two products: dtype; hidden, inner, experts (held); rows, about so many of an expert (a
power of two); for `down` block_m, the rows of a tile, which `gate_up` chose for both.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
import triton

from seesaw.kernels.kernel import Build, Config, Key, Target

MAX_BLOCK_M = 128
WORDS = {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32"}


def _stage_bytes(key: Key, blocks: Mapping[str, int], matrices: int) -> int:
    """Shared memory of one stage: a block of rows, and one of each matrix of weights."""
    itemsize: int = getattr(torch, str(key["dtype"])).itemsize
    return (blocks["BLOCK_M"] + matrices * blocks["BLOCK_N"]) * blocks["BLOCK_K"] * itemsize


def product_default(key: Key, target: Target, matrices: int) -> Config:
    """Few rows wait for weights: long blocks of these under way; many rows want large tiles."""
    rows = int(key.get("block_m", max(16, int(key["rows"]))))
    columns = 128 // matrices
    blocks = {"BLOCK_M": rows, "BLOCK_N": columns, "BLOCK_K": 128, "GROUP": 1}
    if key["dtype"] == "float32":  # without tensor cores: what a thread holds is the limit
        rows = int(key.get("block_m", min(32, rows)))
        blocks |= {"BLOCK_M": rows, "BLOCK_N": 64 // matrices, "BLOCK_K": 32}
    elif rows > 32:
        blocks |= {"BLOCK_K": 64, "GROUP": 8}
        if rows == MAX_BLOCK_M and target.capability in (90, 100):  # others have too few registers
            blocks["BLOCK_N"] = 256 // matrices
    stage_bytes = _stage_bytes(key, blocks, matrices)
    stages = min(4, target.shared_memory_bytes // stage_bytes)
    return Config(blocks, num_warps=8 if rows == MAX_BLOCK_M else 4, num_stages=max(1, stages))


def product_candidates(key: Key, target: Target, matrices: int) -> tuple[Config, ...]:
    """Around the default: what a tile holds in each dim, and how much is under way."""
    rows = max(16, int(key["rows"]))
    sizes = (16, 32, 64, MAX_BLOCK_M)
    wanted = [m for m in sizes if rows // 2 <= m <= rows] if "block_m" not in key else [
        int(key["block_m"])
    ]  # fmt: skip
    depths = (16, 32) if key["dtype"] == "float32" else (64, 128)
    found = []
    for m, n, k in itertools.product(wanted, (32, 64, 128, 256), depths):
        blocks = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP": 1 if rows <= 32 else 8}
        if m * n * matrices > 256 * 128:
            continue
        for stages, num_warps in itertools.product((2, 3, 4), (4, 8)):
            if stages * _stage_bytes(key, blocks, matrices) <= target.shared_memory_bytes:
                found.append(Config(blocks, num_warps, stages))
    return tuple(found)


SORTED = {"order_ptr": "*i32", "starts_ptr": "*i32", "tile_expert_ptr": "*i32"}
_SIZES = {"hidden": 2048, "inner": 768, "experts": 128}
KEYS: tuple[Key, ...] = (
    *({"dtype": "bfloat16", **_SIZES, "rows": rows} for rows in (1, 32, 64, 128)),
    {"dtype": "float16", **_SIZES, "rows": 64},
    *({"dtype": "float32", **_SIZES, "rows": rows} for rows in (1, 128)),
)
"""Sizes are no constants: of any models, the same code."""


def gate_up_build(key: Key, gelu: bool = False) -> Build:
    word = WORDS[str(key["dtype"])]
    sizes = ("x_row_stride", "expert_stride", "row_stride", "up_offset", "hidden", "inner")
    pointers = {"x_ptr": word, "gate_up_ptr": word, **SORTED, "inner_ptr": word}
    return Build(
        key=key,
        signature={**pointers, **dict.fromkeys((*sizes, "num_tiles", "top_k"), "i32")},
        constants={"GELU": gelu},
        aligned=(*pointers, *sizes),
    )


def down_build(key: Key) -> Build:
    word = WORDS[str(key["dtype"])]
    sizes = ("expert_stride", "row_stride", "hidden", "inner")
    pointers = {"inner_ptr": word, "down_ptr": word, **SORTED, "rows_ptr": word}
    rows = max(16, int(key["rows"]))
    block_m = min(32, rows) if key["dtype"] == "float32" else rows
    return Build(
        key={**key, "block_m": block_m},
        signature={**pointers, **dict.fromkeys((*sizes, "num_tiles"), "i32")},
        aligned=(*pointers, *sizes),
    )


def sort_default(key: Key, target: Target) -> Config:
    return Config({"BLOCK": min(4096, max(128, int(key["pairs"])))}, num_warps=4)


def sum_default(key: Key, target: Target) -> Config:
    block = 4096 // triton.next_power_of_2(int(key["top_k"]))
    block = min(512, max(32, block), triton.next_power_of_2(int(key["hidden"])))
    return Config({"BLOCK": block}, num_warps=4)


def sum_candidates(key: Key, target: Target) -> tuple[Config, ...]:
    return tuple(
        Config({"BLOCK": block}, num_warps=num_warps)
        for block in (128, 256, 512, 1024)
        for num_warps in (1, 2, 4, 8)
        if block * triton.next_power_of_2(int(key["top_k"])) <= 16384
    )


def sort_build(counts: bool, block_m: int, pairs: int) -> Build:
    pointers = {"experts_ptr": "*i32", **SORTED, "counts_ptr": "*i64"}
    constants: dict[str, object] = {"BLOCK_M": block_m}
    if not counts:
        del pointers["counts_ptr"]
        constants["counts_ptr"] = None
    numbers = ("num_pairs", "max_held", "num_tiles", "first_expert")
    return Build(
        key={"experts": 128, "pairs": pairs},
        signature={**pointers, **dict.fromkeys(numbers, "i32")},
        constants=constants,
        aligned=tuple(pointers),
    )


def sum_build(dtype: str, hidden: int, top_k: int) -> Build:
    word = WORDS[dtype]
    return Build(
        key={"hidden": hidden, "top_k": top_k},
        signature={
            "rows_ptr": word, "weights_ptr": "*fp32", "experts_ptr": "*i32", "out_ptr": word,
            "hidden": "i32", "first_expert": "i32", "end_expert": "i32",
        },
        constants={"TOP_K": top_k, "BLOCK_N": triton.next_power_of_2(top_k)},
        aligned=("rows_ptr", "weights_ptr", "experts_ptr", "out_ptr", "hidden"),
    )  # fmt: skip
