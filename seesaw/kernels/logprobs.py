"""Log-probabilities of drawn tokens, their ranks, and the most probable tokens (formula and bytes:
ops/logprobs.py).

A row is cut into chunks that fit into registers. Of each chunk a program writes its part of the
norm, how many logits are above the drawn one, and its most probable tokens; a second kernel joins
the chunks. Both find the most probable one after the other: a maximum of integers that no two
tokens share (kernels/order.py), which is then taken out.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from seesaw.kernels.checks import expect, expect_tensors
from seesaw.kernels.kernel import Build, Config, Kernel, Key, Target
from seesaw.kernels.order import NONE, key_column, key_logit, order_key
from seesaw.kernels.tuning import config_for

# Shape letters: S rows, V vocabulary, C chunks of a row, k most probable tokens.

OP = "logprobs"
_MAX_JOINED = 16384
"""Most tokens that a program of the second kernel holds, padded to a power of two."""


@triton.jit
def _logprobs_kernel(
    logits_ptr, token_ptr, key_ptr, part_ptr, above_ptr, row_stride, vocab, top, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    column = chunk * BLOCK + tl.arange(0, BLOCK)
    inside = column < vocab
    x = tl.load(logits_ptr + row * row_stride + column, mask=inside, other=float("-inf"))
    token = tl.load(token_ptr + row)
    known = (token >= 0) & (token < vocab)
    drawn = tl.load(logits_ptr + row * row_stride + token, mask=known, other=float("nan"))
    highest = tl.max(x, 0)
    weights = tl.where(x > float("-inf"), tl.exp(x - highest), 0.0)
    own = row * tl.num_programs(1) + chunk
    tl.store(part_ptr + 2 * own, highest)
    tl.store(part_ptr + 2 * own + 1, tl.sum(weights, 0))
    tl.store(above_ptr + own, tl.sum((inside & (x > drawn)).to(tl.int32), 0))
    keys = tl.where(inside, order_key(x, column), NONE)
    for place in range(top):
        best = tl.max(keys, 0)
        tl.store(key_ptr + own * top + place, best)
        keys = tl.where(keys == best, NONE, keys)


@triton.jit
def _merge_kernel(
    logits_ptr,
    token_ptr,
    key_ptr,
    part_ptr,
    above_ptr,
    logprob_ptr,
    rank_ptr,
    top_id_ptr,
    top_logprob_ptr,
    row_stride,
    vocab,
    chunks,
    kept,
    top,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.arange(0, CHUNKS)
    own = row * chunks + chunk
    inside = chunk < chunks
    high = tl.load(part_ptr + 2 * own, mask=inside, other=float("-inf"))
    part = tl.load(part_ptr + 2 * own + 1, mask=inside, other=0.0)
    highest = tl.max(high, 0)
    norm = highest + tl.log(tl.sum(tl.where(part > 0, part * tl.exp(high - highest), 0.0), 0))
    token = tl.load(token_ptr + row)
    known = (token >= 0) & (token < vocab)
    drawn = tl.load(logits_ptr + row * row_stride + token, mask=known, other=float("nan"))
    tl.store(logprob_ptr + row, drawn - norm)
    above = tl.load(above_ptr + own, mask=inside, other=0)
    tl.store(rank_ptr + row, tl.sum(above, 0).to(tl.int64) + 1)
    place = tl.arange(0, BLOCK)
    count = chunks * kept
    keys = tl.load(key_ptr + row * count + place, mask=place < count, other=NONE)
    for place in range(top):
        best = tl.max(keys, 0)
        tl.store(top_id_ptr + row * top + place, key_column(best))
        tl.store(top_logprob_ptr + row * top + place, key_logit(best) - norm)
        keys = tl.where(keys == best, NONE, keys)


def logprobs(
    logits_SV: torch.Tensor, token_ids_S: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `ops.logprobs`; nothing waits for the device, so an id outside the vocabulary is not
    refused: its logprob is NaN. Raises UnsupportedError."""
    _check(logits_SV, token_ids_S, k)
    rows, vocab = logits_SV.shape
    device = logits_SV.device
    top = min(k, vocab)
    config = config_for(KERNEL, device, vocab=vocab)
    block = config.blocks["BLOCK"]
    chunks, kept = triton.cdiv(vocab, block), min(top, block)
    joined = triton.next_power_of_2(max(1, chunks * kept))
    expect(OP, f"k for a vocabulary of {vocab}", k, f"at most {_MAX_JOINED // chunks}",
           joined <= _MAX_JOINED)  # fmt: skip
    logprob_S = torch.empty(rows, dtype=torch.float32, device=device)
    rank_S = torch.empty(rows, dtype=torch.int64, device=device)
    id_Sk = torch.empty(rows, top, dtype=torch.int64, device=device)
    top_Sk = torch.empty(rows, top, dtype=torch.float32, device=device)
    if not rows:
        return logprob_S, rank_S, id_Sk, top_Sk
    key_SCk = torch.empty(rows, chunks, kept, dtype=torch.int64, device=device)
    part_SC2 = torch.empty(rows, chunks, 2, dtype=torch.float32, device=device)
    above_SC = torch.empty(rows, chunks, dtype=torch.int32, device=device)
    _logprobs_kernel[(rows, chunks)](
        logits_SV,
        token_ids_S,
        key_SCk,
        part_SC2,
        above_SC,
        logits_SV.stride(0),
        vocab,
        kept,
        **config.arguments(),
    )
    merge = config_for(MERGE, device, joined=joined)
    _merge_kernel[(rows,)](
        logits_SV,
        token_ids_S,
        key_SCk,
        part_SC2,
        above_SC,
        logprob_S,
        rank_S,
        id_Sk,
        top_Sk,
        logits_SV.stride(0),
        vocab,
        chunks,
        kept,
        top,
        CHUNKS=triton.next_power_of_2(chunks),
        **merge.arguments(),
    )
    return logprob_S, rank_S, id_Sk, top_Sk


def _check(logits_SV: torch.Tensor, token_ids_S: torch.Tensor, k: int) -> None:
    expect_tensors(OP, (torch.float32,), logits=logits_SV)
    expect(OP, "dims of logits", logits_SV.dim(), 2, logits_SV.dim() == 2)
    rows, vocab = logits_SV.shape
    expect(OP, "vocabulary", vocab, "1 to 2^24", 1 <= vocab <= 2**24)
    expect(
        OP, "distance of columns", logits_SV.stride(1), 1, logits_SV.stride(1) == 1 or vocab == 1
    )
    expect_tensors(OP, (torch.int64, torch.int32), token_ids=token_ids_S)
    close = token_ids_S.shape == (rows,) and (rows <= 1 or token_ids_S.stride(0) == 1)
    expect(OP, "shape of token_ids", list(token_ids_S.shape), f"[{rows}], contiguous", close)
    expect(OP, "k", k, "0 or more", k >= 0)


def _default(key: Key, target: Target) -> Config:
    block = min(4096, triton.next_power_of_2(int(key["vocab"])))
    return Config({"BLOCK": block}, num_warps=max(1, block // 512))


def _candidates(key: Key, target: Target) -> tuple[Config, ...]:
    return tuple(
        Config({"BLOCK": block}, num_warps=num_warps)
        for block in (1024, 2048, 4096, 8192)
        for num_warps in (2, 4, 8, 16)
        if 128 <= block // num_warps <= 1024
    )


def _merge_default(key: Key, target: Target) -> Config:
    block = int(key["joined"])
    return Config({"BLOCK": block}, num_warps=min(32, max(1, block // 512)))


_RESULTS = {
    "logprob_ptr": "*fp32", "rank_ptr": "*i64", "top_id_ptr": "*i64", "top_logprob_ptr": "*fp32",
}  # fmt: skip
_READ = {"logits_ptr": "*fp32", "token_ptr": "*i64", "key_ptr": "*i64", "part_ptr": "*fp32",
         "above_ptr": "*i32"}  # fmt: skip

KERNEL = Kernel(
    name="logprobs",
    function=_logprobs_kernel,
    builds=tuple(
        Build(
            key={"vocab": vocab},
            signature={**_READ, "row_stride": "i32", "vocab": "i32", "top": "i32"},
            aligned=(*_READ, "row_stride", "vocab"),
        )
        for vocab in (128, 49_152, 128_256)
    ),
    default=_default,
    candidates=_candidates,
)
MERGE = Kernel(
    name="logprobs.merge",
    function=_merge_kernel,
    builds=tuple(
        Build(
            key={"joined": joined},
            signature={
                **_READ, **_RESULTS,
                **dict.fromkeys(("row_stride", "vocab", "chunks", "kept", "top"), "i32"),
            },
            constants={"CHUNKS": 32},
            aligned=(*_READ, *_RESULTS, "row_stride", "vocab"),
        )
        for joined in (1, 256, 1024, _MAX_JOINED)
    ),
    default=_merge_default,
)  # fmt: skip
KERNELS = (KERNEL, MERGE)
