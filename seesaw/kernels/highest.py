"""The highest logit of each row and its id (bytes: ops/highest.py).

A row is cut into as many chunks as it takes to occupy the GPU; a second kernel joins them where
there is more than one. The result does not depend on the cut.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from seesaw.kernels.checks import FLOATS, expect, expect_tensors
from seesaw.kernels.kernel import Build, Config, Kernel, Key, Target
from seesaw.kernels.order import NONE, key_column, key_logit, order_key
from seesaw.kernels.target import target_of
from seesaw.kernels.tuning import config_for

# Shape letters: S rows, V vocabulary, C chunks of a row.

OP = "highest"
_PROGRAMS_PER_SM = 4
_MAX_CHUNKS = 1024


@triton.jit
def _highest_kernel(
    logits_ptr, value_ptr, id_ptr, key_ptr, row_stride, vocab, chunk, first_id, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    begin = tl.program_id(1) * chunk
    end = tl.minimum(begin + chunk, vocab)
    best = tl.full((BLOCK,), NONE, tl.int64)
    for start in range(begin, end, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < end
        x = tl.load(logits_ptr + row * row_stride + column, mask=inside, other=0.0)
        key = order_key(x.to(tl.float32), column)
        best = tl.maximum(best, tl.where(inside, key, NONE))
    key = tl.max(best, 0)
    if key_ptr is None:
        tl.store(value_ptr + row, key_logit(key))
        tl.store(id_ptr + row, key_column(key) + first_id)
    else:
        tl.store(key_ptr + row * tl.num_programs(1) + tl.program_id(1), key)


@triton.jit(do_not_specialize=["chunks"])
def _merge_kernel(key_ptr, value_ptr, id_ptr, chunks, first_id, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    keys = tl.load(key_ptr + row * chunks + place, mask=place < chunks, other=NONE)
    key = tl.max(keys, 0)
    tl.store(value_ptr + row, key_logit(key))
    tl.store(id_ptr + row, key_column(key) + first_id)


def highest(logits_SV: torch.Tensor, first_id: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """As `ops.highest`. Raises UnsupportedError."""
    expect_tensors(OP, FLOATS, logits=logits_SV)
    expect(OP, "dims of logits", logits_SV.dim(), 2, logits_SV.dim() == 2)
    rows, vocab = logits_SV.shape
    expect(OP, "vocabulary", vocab, "1 to 2^31 - 2^16", 1 <= vocab <= 2**31 - 2**16)
    expect(
        OP, "distance of columns", logits_SV.stride(1), 1, logits_SV.stride(1) == 1 or vocab == 1
    )
    value_S = torch.empty(rows, dtype=torch.float32, device=logits_SV.device)
    id_S = torch.empty(rows, dtype=torch.int64, device=logits_SV.device)
    if not rows:
        return value_S, id_S
    config = config_for(KERNEL, logits_SV.device, vocab=vocab)
    chunks, chunk = _cut(rows, vocab, config.blocks["BLOCK"], target_of(logits_SV.device))
    key_SC = None
    if chunks > 1:
        key_SC = torch.empty(rows, chunks, dtype=torch.int64, device=logits_SV.device)
    _highest_kernel[(rows, chunks)](
        logits_SV, value_S, id_S, key_SC, logits_SV.stride(0), vocab, chunk, first_id,
        **config.arguments(),
    )  # fmt: skip
    if key_SC is not None:
        merge = config_for(MERGE, logits_SV.device, chunks=triton.next_power_of_2(chunks))
        _merge_kernel[(rows,)](key_SC, value_S, id_S, chunks, first_id, **merge.arguments())
    return value_S, id_S


def _cut(rows: int, vocab: int, block: int, target: Target) -> tuple[int, int]:
    """(chunks of a row, tokens of each, a multiple of `block`)."""
    blocks = triton.cdiv(vocab, block)
    wanted = triton.cdiv(_PROGRAMS_PER_SM * target.num_sms, rows)
    chunk = triton.cdiv(blocks, min(blocks, wanted, _MAX_CHUNKS)) * block
    return triton.cdiv(vocab, chunk), chunk


def _default(key: Key, target: Target) -> Config:
    return Config({"BLOCK": min(2048, triton.next_power_of_2(int(key["vocab"])))}, num_warps=4)


def _candidates(key: Key, target: Target) -> tuple[Config, ...]:
    return tuple(
        Config({"BLOCK": block}, num_warps=num_warps)
        for block in (1024, 2048, 4096, 8192)
        for num_warps in (2, 4, 8)
        if block // num_warps <= 1024
    )


def _merge_default(key: Key, target: Target) -> Config:
    return Config({"BLOCK": int(key["chunks"])}, num_warps=1 if int(key["chunks"]) <= 256 else 4)


def _build(dtype: str, vocab: int, merged: bool) -> Build:
    signature = {"logits_ptr": dtype, "value_ptr": "*fp32", "id_ptr": "*i64", "row_stride": "i32",
                 "vocab": "i32", "chunk": "i32", "first_id": "i32"}  # fmt: skip
    aligned = ["logits_ptr", "value_ptr", "id_ptr", "row_stride", "vocab", "chunk"]
    constants = {} if merged else {"key_ptr": None}
    if merged:
        signature["key_ptr"] = "*i64"
        aligned.append("key_ptr")
    return Build(
        key={"vocab": vocab}, signature=signature, constants=constants, aligned=tuple(aligned)
    )


KERNEL = Kernel(
    name="highest",
    function=_highest_kernel,
    builds=(
        _build("*bf16", 128_256, True),
        _build("*bf16", 151_936, False),
        _build("*fp16", 128_256, True),
        _build("*fp32", 128_256, True),
        _build("*fp32", 262_144, False),
    ),
    default=_default,
    candidates=_candidates,
)
MERGE = Kernel(
    name="highest.merge",
    function=_merge_kernel,
    builds=tuple(
        Build(
            key={"chunks": chunks},
            signature={"key_ptr": "*i64", "value_ptr": "*fp32", "id_ptr": "*i64", "chunks": "i32",
                       "first_id": "i32"},
            aligned=("key_ptr", "value_ptr", "id_ptr"),
        )
        for chunks in (8, 64, 512)
    ),
    default=_merge_default,
)  # fmt: skip
KERNELS = (KERNEL, MERGE)
