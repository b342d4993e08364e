"""One token per row from its logits (order, filters and bytes: ops/sample.py).

A program draws for a row and sorts nothing. What stands for a logit is its distance from the
highest, a float >= 0 whose bits are in the same order, and its weight, e^-distance as an integer of
2^-SHIFT. Sums of integers are exact in any order, so that "the most probable that weigh together at
most so much" is found by bisection over the bits of a distance, in 16 sums, and the token of a
random number is the same however the sums are cut.

Rows with top_k or top_p are bisected over the tokens within a distance that surely holds all that
are kept, put together in a scratch buffer first; over all tokens where those are too many for it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from seesaw.kernels.checks import expect, expect_tensors
from seesaw.kernels.highest import highest
from seesaw.kernels.kernel import Build, Config, Kernel, Key, Target
from seesaw.kernels.tuning import config_for
from seesaw.plan.sampling_workspace import SAMPLE_BYTES

# Shape letters: S rows, V vocabulary, W most candidates of a row in the scratch buffer.

OP = "sample"
MAX_CANDIDATES = 16384
_MAX_VOCAB = 2**24
EDGES = tl.constexpr(8)


@triton.jit
def _distance(x, temperature, top, limit):
    """How far below the highest; inf for what cannot be drawn or min_p drops. No NaN."""
    d = top - tl.div_rn(x, temperature)
    return tl.where(d <= limit, d, float("inf"))


@triton.jit
def _weight(d, SHIFT: tl.constexpr):
    """e^-d in units of 2^-SHIFT, rounded down. e^-d = 2^-n 2^f with |f| <= 1/2, since the GPU's
    exp2 is as exact as float32 allows only where its argument is small."""
    near = d < SHIFT * 0.6931472 + 1.0  # beyond it less than one unit
    d = tl.where(near, d, 0.0)
    n = tl.floor(d * 1.4426950408889634 + 0.5)
    # ln 2 in two parts, of which the first has few bits: n times it is exact
    f = ((n * 0.693359375 - d) - n * 2.12194440e-4) * 1.4426950408889634
    return tl.where(near, tl.exp2(f) * tl.exp2(SHIFT - n), 0.0).to(tl.int64)


@triton.jit
def _load_distance(base_ptr, place, size, temperature, top, limit):
    x = tl.load(base_ptr + place, mask=place < size, other=float("-inf"))
    return _distance(x, temperature, top, limit)


@triton.jit
def _sum_below(
    base_ptr, size, temperature, top, limit, bits,
    COUNT: tl.constexpr, SHIFT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Number or weight of the tokens that are nearer than the distances whose bits are `bits`
    (uint32, a row of them), for each."""
    total = tl.zeros(bits.shape, tl.int64)
    for start in range(0, size, BLOCK):
        place = start + tl.arange(0, BLOCK)
        d = _load_distance(base_ptr, place, size, temperature, top, limit)
        each = (place < size).to(tl.int64) if COUNT else _weight(d, SHIFT)
        nearer = d.to(tl.uint32, bitcast=True)[None, :] < bits[:, None]
        total += tl.sum(tl.where(nearer, each[None, :], 0), 1)
    return total


@triton.jit
def _bisect(
    base_ptr, size, temperature, top, limit, most,
    COUNT: tl.constexpr, SHIFT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(the largest bits of a distance such that what is nearer sums up to at most `most`, that
    sum). Bits of no float where all does. Two bits at a time."""
    bits = tl.full((), 0, tl.uint32)
    found = tl.full((), 0, tl.int64)
    digit = tl.arange(0, 4).to(tl.uint32)
    shift = tl.full((), 30, tl.uint32)
    for _ in range(16):
        tried = bits + (digit << shift)
        total = _sum_below(base_ptr, size, temperature, top, limit, tried, COUNT, SHIFT, BLOCK)
        fits = (total <= most) | (digit == 0)
        bits = tl.max(tl.where(fits, tried, 0), 0)
        found = tl.max(tl.where(fits, total, 0), 0)
        shift -= 2
    return bits, found


@triton.jit
def _weight_of_bits(bits, SHIFT: tl.constexpr):
    d = tl.minimum(bits, 0x7F800000).to(tl.float32, bitcast=True)
    return _weight(d, SHIFT)


@triton.jit
def _place_of_equal(base_ptr, size, temperature, top, limit, bits, rank, BLOCK: tl.constexpr):
    """Place of number `rank` (from 0) of the tokens at exactly that distance, by place."""
    start = tl.full((), 0, tl.int32)
    place = tl.full((), -1, tl.int32)
    while (place < 0) & (start < size):
        here = start + tl.arange(0, BLOCK)
        d = _load_distance(base_ptr, here, size, temperature, top, limit)
        equal = ((d.to(tl.uint32, bitcast=True) == bits) & (here < size)).to(tl.int32)
        chosen = (equal == 1) & (tl.cumsum(equal, 0) - 1 == rank)
        place = tl.max(tl.where(chosen, here, -1), 0)
        rank -= tl.sum(equal, 0)
        start += BLOCK
    return place


@triton.jit
def _draw_by_id(
    base_ptr, size, temperature, top, limit, uniform, SHIFT: tl.constexpr, BLOCK: tl.constexpr
):
    """The column in which the sum of weights over columns passes the random number; -1 if none
    weighs anything."""
    total = tl.full((), 0, tl.int64)
    for start in range(0, size, BLOCK):
        place = start + tl.arange(0, BLOCK)
        d = _load_distance(base_ptr, place, size, temperature, top, limit)
        total += tl.sum(_weight(d, SHIFT), 0)
    target = tl.minimum((uniform * total.to(tl.float64)).to(tl.int64), total - 1)
    start = tl.full((), 0, tl.int32)
    column = tl.full((), -1, tl.int32)
    before = tl.full((), 0, tl.int64)
    while (column < 0) & (start < size) & (total > 0):
        here = start + tl.arange(0, BLOCK)
        d = _load_distance(base_ptr, here, size, temperature, top, limit)
        weight = _weight(d, SHIFT)
        cdf = before + tl.cumsum(weight, 0)
        past = (cdf > target) & (cdf - weight <= target)
        column = tl.max(tl.where(past, here, -1), 0)
        before += tl.sum(weight, 0)
        start += BLOCK
    return column


@triton.jit
def _candidates(
    base_ptr, scratch_ptr, ids_ptr, size, temperature, top, limit, top_k, top_p,
    SHIFT: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Puts the tokens within a distance together that hold all that top_k and top_p keep: how many
    (0 where they do not fit), and how many can be drawn at all.

    Distances are tried in steps of (i / 2)^2: numbers of tokens grow about exponentially.
    """
    edge = (tl.arange(0, EDGES) + 1).to(tl.float32) * 0.5
    edge = edge * edge
    count = tl.zeros((EDGES,), tl.int32)
    weight = tl.zeros((EDGES,), tl.int64)
    possible = tl.full((), 0, tl.int32)
    total = tl.full((), 0, tl.int64)
    for start in range(0, size, BLOCK):
        place = start + tl.arange(0, BLOCK)
        d = _load_distance(base_ptr, place, size, temperature, top, limit)
        each = _weight(d, SHIFT)
        within = d[None, :] < edge[:, None]
        count += tl.sum(within.to(tl.int32), 1)
        weight += tl.sum(tl.where(within, each[None, :], 0), 1)
        possible += tl.sum((d < float("inf")).to(tl.int32), 0)
        total += tl.sum(each, 0)
    if top_k > 0:
        enough = count >= tl.minimum(top_k, possible)
    else:
        enough = weight.to(tl.float64) >= total.to(tl.float64) * top_p
    nearest = tl.min(tl.where(enough & (count <= WIDTH), edge, float("inf")), 0)
    filled = tl.full((), 0, tl.int32)
    if nearest < float("inf"):
        for start in range(0, size, BLOCK):
            place = start + tl.arange(0, BLOCK)
            d = _load_distance(base_ptr, place, size, temperature, top, limit)
            taken = (d < nearest).to(tl.int32)
            to = filled + tl.cumsum(taken, 0) - 1
            tl.store(scratch_ptr + to, -d, mask=taken == 1)
            tl.store(ids_ptr + to, place, mask=taken == 1)
            filled += tl.sum(taken, 0)
    tl.debug_barrier()  # all threads read what each has written
    return filled, possible, total


@triton.jit
def _draw_ordered(
    base_ptr, size, temperature, top, limit, top_k, top_p, uniform, total,
    SHIFT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Place of the token in which the sum over descending probability passes the random number.
    `top_k`: how many to keep, 0 = all; `total`: weight of all that can be drawn."""
    kept = total
    if top_k > 0:
        bits, nearer = _bisect(
            base_ptr, size, temperature, top, limit, (top_k - 1).to(tl.int64), True, SHIFT, BLOCK
        )
        one = tl.full((1,), 0, tl.uint32) + bits
        below = _sum_below(base_ptr, size, temperature, top, limit, one, False, SHIFT, BLOCK)
        kept = tl.sum(below, 0) + (top_k - nearer) * _weight_of_bits(bits, SHIFT)
    if top_p < 1.0:
        reach = tl.ceil(top_p.to(tl.float64) * kept.to(tl.float64)).to(tl.int64)
        reach = tl.minimum(tl.maximum(reach, 1), kept)
        bits, nearer = _bisect(
            base_ptr, size, temperature, top, limit, reach - 1, False, SHIFT, BLOCK
        )
        each = tl.maximum(_weight_of_bits(bits, SHIFT), 1)
        kept = nearer + (reach - nearer + each - 1) // each * each
    target = tl.minimum((uniform * kept.to(tl.float64)).to(tl.int64), kept - 1)
    bits, nearer = _bisect(base_ptr, size, temperature, top, limit, target, False, SHIFT, BLOCK)
    each = tl.maximum(_weight_of_bits(bits, SHIFT), 1)
    rank = ((target - nearer) // each).to(tl.int32)
    return _place_of_equal(base_ptr, size, temperature, top, limit, bits, rank, BLOCK)


@triton.jit
def _sample_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    uniform_ptr,
    highest_ptr,
    token_ptr,
    scratch_ptr,
    ids_ptr,
    row_stride,
    vocab,
    SHIFT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperature_ptr + row)
    if temperature > 0:  # the others have their highest already
        base_ptr = logits_ptr + row * row_stride
        top = tl.div_rn(tl.load(highest_ptr + row), temperature)
        min_p = tl.load(min_p_ptr + row)
        # the largest finite float: what is impossible is left out without min_p too
        limit = tl.where(min_p > 0, -tl.log(tl.where(min_p > 0, min_p, 1.0)), 3.4028234e38)
        uniform = tl.load(uniform_ptr + row)
        top_p = tl.load(top_p_ptr + row)
        top_k = tl.load(top_k_ptr + row)
        top_k = tl.where((top_k > 0) & (top_k < vocab), top_k, 0).to(tl.int32)
        if (top_k > 0) | (top_p < 1.0):
            own_ptr = scratch_ptr + row * WIDTH
            own_ids_ptr = ids_ptr + row * WIDTH
            filled, possible, total = _candidates(
                base_ptr, own_ptr, own_ids_ptr, vocab, temperature, top, limit, top_k, top_p,
                SHIFT, BLOCK, WIDTH,
            )  # fmt: skip
            if total > 0:
                top_k = tl.minimum(top_k, possible)
                if filled > 0:
                    place = _draw_ordered(
                        own_ptr, filled, 1.0, 0.0, 3.4028234e38, top_k, top_p, uniform, total,
                        SHIFT, BLOCK,
                    )  # fmt: skip
                    # -1 where float64 has rounded the share of top_p: the first that is kept
                    place = tl.load(own_ids_ptr + tl.maximum(place, 0))
                else:
                    place = _draw_ordered(
                        base_ptr, vocab, temperature, top, limit, top_k, top_p, uniform, total,
                        SHIFT, BLOCK,
                    )  # fmt: skip
                tl.store(token_ptr + row, place.to(tl.int64), mask=place >= 0)
        else:
            column = _draw_by_id(base_ptr, vocab, temperature, top, limit, uniform, SHIFT, BLOCK)
            if column >= 0:
                tl.store(token_ptr + row, column.to(tl.int64))


def sample(
    logits_SV: torch.Tensor,
    *,
    temperature_S: torch.Tensor,
    top_k_S: torch.Tensor,
    top_p_S: torch.Tensor,
    min_p_S: torch.Tensor,
    uniform_S: torch.Tensor,
) -> torch.Tensor:
    """As `ops.sample`; nothing waits for the device. Weights are exact to about 2^-22, so a
    token may differ where the random number falls that near to a bound. Raises
    UnsupportedError."""
    expect_tensors(OP, (torch.float32,), logits=logits_SV)
    expect(OP, "dims of logits", logits_SV.dim(), 2, logits_SV.dim() == 2)
    rows, vocab = logits_SV.shape
    expect(OP, "vocabulary", vocab, f"1 to {_MAX_VOCAB}", 1 <= vocab <= _MAX_VOCAB)
    expect(
        OP, "distance of columns", logits_SV.stride(1), 1, logits_SV.stride(1) == 1 or vocab == 1
    )
    for name, one, dtype in (
        ("temperature", temperature_S, torch.float32),
        ("top_k", top_k_S, torch.int64),
        ("top_p", top_p_S, torch.float32),
        ("min_p", min_p_S, torch.float32),
        ("uniform", uniform_S, torch.float64),
    ):
        expect(OP, f"dtype of {name}", one.dtype, dtype, one.dtype == dtype)
        expect(
            OP, f"device of {name}", one.device, logits_SV.device, one.device == logits_SV.device
        )
        close = one.shape == (rows,) and (rows <= 1 or one.stride(0) == 1)
        expect(OP, f"shape of {name}", list(one.shape), f"[{rows}], contiguous", close)
    value_S, token_S = highest(logits_SV)
    width = min(MAX_CANDIDATES, triton.next_power_of_2(vocab))
    at_once = max(1, SAMPLE_BYTES // (8 * width))
    config = config_for(KERNEL, logits_SV.device, vocab=vocab)
    held = (min(rows, at_once), width)
    scratch_SW = torch.empty(held, dtype=torch.float32, device=logits_SV.device)
    id_SW = torch.empty(held, dtype=torch.int32, device=logits_SV.device)
    for start in range(0, rows, at_once):
        some = slice(start, start + at_once)
        _sample_kernel[(min(at_once, rows - start),)](
            logits_SV[some],
            temperature_S[some],
            top_k_S[some],
            top_p_S[some],
            min_p_S[some],
            uniform_S[some],
            value_S[some],
            token_S[some],
            scratch_SW,
            id_SW,
            logits_SV.stride(0),
            vocab,
            SHIFT=_shift(vocab),
            WIDTH=width,
            **config.arguments(),
        )
    return token_S


def _shift(vocab: int) -> int:
    """Units such that the weights of a whole vocabulary stay below 2^62."""
    return 61 - vocab.bit_length()


def _default(key: Key, target: Target) -> Config:
    block = min(2048, triton.next_power_of_2(int(key["vocab"])))
    return Config({"BLOCK": block}, num_warps=max(1, block // 256))


def _candidates_of(key: Key, target: Target) -> tuple[Config, ...]:
    return tuple(
        Config({"BLOCK": block}, num_warps=num_warps)
        for block in (1024, 2048, 4096, 8192)
        for num_warps in (4, 8, 16, 32)
        if 64 <= block // num_warps <= 512
    )


_ROWS = ("temperature_ptr", "top_p_ptr", "min_p_ptr", "highest_ptr", "scratch_ptr", "logits_ptr")
_POINTERS = {
    **dict.fromkeys(_ROWS, "*fp32"),
    "top_k_ptr": "*i64",
    "token_ptr": "*i64",
    "uniform_ptr": "*fp64",
    "ids_ptr": "*i32",
}

KERNEL = Kernel(
    name="sample",
    function=_sample_kernel,
    builds=tuple(
        Build(
            key={"vocab": vocab},
            signature={**_POINTERS, "row_stride": "i32", "vocab": "i32"},
            constants={"SHIFT": _shift(vocab), "WIDTH": min(MAX_CANDIDATES, vocab)},
            aligned=(*_POINTERS, "row_stride", "vocab"),
        )
        for vocab in (128, 49_152, 128_256, 262_144)
    ),
    default=_default,
    candidates=_candidates_of,
)
KERNELS = (KERNEL,)
