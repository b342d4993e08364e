"""Bans, biases and penalties on logits (order and formula: ops/adjust_logits.py).

All that rows ask for becomes one list of (row, token) entries, in which no pair stands twice, is
sent in one copy, and applied by one launch.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
import triton
import triton.language as tl

from seesaw.hostmem.upload import upload
from seesaw.kernels.checks import expect, expect_tensors
from seesaw.kernels.kernel import Build, Config, Kernel, Key, Target
from seesaw.kernels.tuning import config_for

# Shape letters: S rows, V vocabulary, A adjusted rows, M entries.

OP = "adjust_logits"


class Adjustment(Protocol):
    """`ops.RowAdjustment`."""

    @property
    def row(self) -> int: ...
    @property
    def banned(self) -> Sequence[int]: ...
    @property
    def bias(self) -> Mapping[int, float]: ...
    @property
    def counts(self) -> Mapping[int, int]: ...
    @property
    def repetition_penalty(self) -> float: ...
    @property
    def frequency_penalty(self) -> float: ...
    @property
    def presence_penalty(self) -> float: ...


@triton.jit(do_not_specialize=["entries"])
def _adjust_logits_kernel(
    logits_ptr,
    row_ptr,
    repetition_ptr,
    frequency_ptr,
    presence_ptr,
    owner_ptr,
    token_ptr,
    count_ptr,
    bias_ptr,
    row_stride,
    entries,
    BLOCK: tl.constexpr,
):
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = entry < entries
    owner = tl.load(owner_ptr + entry, mask=inside, other=0)
    token = tl.load(token_ptr + entry, mask=inside, other=0)
    count = tl.load(count_ptr + entry, mask=inside, other=-1)
    row = tl.load(row_ptr + owner, mask=inside, other=0).to(tl.int64)
    place_ptr = logits_ptr + row * row_stride + token
    x = tl.load(place_ptr, mask=inside, other=0.0)
    x += tl.load(bias_ptr + entry, mask=inside, other=0.0)
    repetition = tl.load(repetition_ptr + owner, mask=inside, other=1.0)
    frequency = tl.load(frequency_ptr + owner, mask=inside, other=0.0)
    presence = tl.load(presence_ptr + owner, mask=inside, other=0.0)
    penalised = tl.where(x > 0, tl.div_rn(x, repetition), x * repetition)
    penalised -= frequency * count.to(tl.float32)
    penalised -= tl.where(count > 0, presence, 0.0)
    tl.store(place_ptr, tl.where(count >= 0, penalised, x), mask=inside)


def adjust_logits(logits_SV: torch.Tensor, adjustments: Sequence[Adjustment]) -> torch.Tensor:
    """As `ops.adjust_logits`; nothing waits for the device. Raises UnsupportedError."""
    expect_tensors(OP, (torch.float32,), logits=logits_SV)
    expect(OP, "dims of logits", logits_SV.dim(), 2, logits_SV.dim() == 2)
    if not adjustments:
        return logits_SV
    owners, tokens, counts, biases = _entries(adjustments)
    expect(OP, "entries", len(tokens), "below 2^31", len(tokens) < 2**31)
    out_SV = logits_SV.clone(memory_format=torch.contiguous_format)
    if not tokens:
        return out_SV
    columns = upload(
        logits_SV.device,
        ("i", [a.row for a in adjustments]),
        ("f", [a.repetition_penalty for a in adjustments]),
        ("f", [a.frequency_penalty for a in adjustments]),
        ("f", [a.presence_penalty for a in adjustments]),
        ("i", owners),
        ("i", tokens),
        ("i", counts),
        ("f", biases),
    )
    config = config_for(KERNEL, logits_SV.device)
    grid = (triton.cdiv(len(tokens), config.blocks["BLOCK"]),)
    _adjust_logits_kernel[grid](
        out_SV, *columns, out_SV.stride(0), len(tokens), **config.arguments()
    )
    return out_SV


def _entries(
    adjustments: Sequence[Adjustment],
) -> tuple[array[int], array[int], array[int], array[float]]:
    """(index of the adjustment, token, count or -1 where no penalty applies, what is added) of each
    entry. A ban is a bias of -inf, which stays that under all that follows."""
    owners, tokens, counts = array("i"), array("i"), array("i")
    biases = array("f")
    for owner, a in enumerate(adjustments):
        extra = {**a.bias, **dict.fromkeys(a.banned, float("-inf"))}
        neutral = (a.repetition_penalty, a.frequency_penalty, a.presence_penalty) == (1.0, 0.0, 0.0)
        counted = {} if neutral else a.counts
        start = len(tokens)
        tokens.extend(counted.keys())
        counts.extend(counted.values())
        if extra:
            biases.extend([extra.pop(token, 0.0) for token in counted])
        else:
            biases.frombytes(bytes(4 * len(counted)))
        tokens.extend(extra.keys())
        counts.extend(array("i", [-1]) * len(extra))
        biases.extend(extra.values())
        owners.extend(array("i", [owner]) * (len(tokens) - start))
    return owners, tokens, counts, biases


def _default(key: Key, target: Target) -> Config:
    return Config({"BLOCK": 128}, num_warps=4)


_INTS = ("row_ptr", "owner_ptr", "token_ptr", "count_ptr")
_FLOATS = ("logits_ptr", "bias_ptr", "repetition_ptr", "frequency_ptr", "presence_ptr")
_POINTERS = {**dict.fromkeys(_INTS, "*i32"), **dict.fromkeys(_FLOATS, "*fp32")}

KERNEL = Kernel(
    name="adjust_logits",
    function=_adjust_logits_kernel,
    builds=(
        Build(
            key={},
            signature={**_POINTERS, "row_stride": "i32", "entries": "i32"},
            aligned=(*_POINTERS, "row_stride"),
        ),
    ),
    default=_default,
)
KERNELS = (KERNEL,)
