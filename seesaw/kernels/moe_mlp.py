"""MLPs of a layer with experts (formula, bytes and flops: ops/moe_mlp.py) in four launches.

    sort     pairs of a token and an expert, by expert; tiles of BLOCK_M pairs of one expert each
    gate_up  act(gate x) * up x of a tile's tokens, rows in the order of the sort
    down     times the expert's down projection, to the rows of the pairs
    sum      weighted sum of a token's pairs, in their order

How many tiles there are is known on the device alone. They are numbered so that the host knows a
bound: expert e, whose pairs are start .. stop in sorted order, has the numbers from start / BLOCK_M
+ e to stop / BLOCK_M + e (rounded down, the last included), which is as many as it needs or one
more. No two experts share a number, and none exceeds pairs / BLOCK_M + experts - 1.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from seesaw.kernels.kernel import Kernel
from seesaw.kernels.moe_checks import check_moe_mlp
from seesaw.kernels.moe_configs import (
    KEYS,
    MAX_BLOCK_M,
    down_build,
    gate_up_build,
    product_candidates,
    product_default,
    sort_build,
    sort_default,
    sum_build,
    sum_candidates,
    sum_default,
)
from seesaw.kernels.tuning import config_for

# Shape letters: T tokens, H hidden, E experts held, I inner size, J = 2 I, N experts of a token, P
# = T N pairs, S the most pairs that can be held here.


@triton.jit(do_not_specialize=["num_pairs", "max_held", "num_tiles", "first_expert"])
def _sort_kernel(
    experts_ptr,
    order_ptr,
    starts_ptr,
    tile_expert_ptr,
    counts_ptr,
    num_pairs,
    max_held,
    num_tiles,
    first_expert,
    BLOCK_M: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One expert's pairs to their places, after those of all lower experts: each program counts
    these by itself, so that nothing is waited for and the order is always the same.

    Starts end at `max_held`: with an expert twice in a token results are wrong, but no memory is
    written that is not the launch's.
    """
    local = tl.program_id(0)
    is_last = local == tl.num_programs(0) - 1
    wanted = first_expert + local
    at = tl.arange(0, BLOCK)
    lower = tl.zeros([BLOCK], tl.int32)
    own = tl.zeros([BLOCK], tl.int32)
    for first in range(0, num_pairs, BLOCK):
        pair = first + at
        expert = tl.load(experts_ptr + pair, mask=pair < num_pairs, other=-1)
        lower += ((expert >= first_expert) & (expert < wanted)).to(tl.int32)
        own += (expert == wanted).to(tl.int32)
    start = tl.sum(lower)
    count = tl.sum(own)
    tl.store(starts_ptr + local, tl.minimum(start, max_held))
    if is_last:
        tl.store(starts_ptr + local + 1, tl.minimum(start + count, max_held))
    if counts_ptr is not None:
        tl.store(counts_ptr + local, tl.load(counts_ptr + local) + 1, mask=count > 0)

    place = start
    for first in range(0, num_pairs, BLOCK):
        pair = first + at
        mine = pair < num_pairs
        mine = mine & (tl.load(experts_ptr + pair, mask=mine, other=-1) == wanted)
        rank = tl.cumsum(mine.to(tl.int32), 0)
        tl.store(order_ptr + place + rank - 1, pair, mask=mine)
        place += tl.sum(mine.to(tl.int32))

    tile_stop = (start + count) // BLOCK_M + local + 1
    if is_last:  # the rest, which is empty
        tile_stop = num_tiles
    for first in range(start // BLOCK_M + local, tile_stop, BLOCK):
        tile = first + at
        tl.store(tile_expert_ptr + tile, tl.zeros([BLOCK], tl.int32) + local, mask=tile < tile_stop)


@triton.jit
def _place(num_tiles, num_blocks, GROUP: tl.constexpr):
    """(tile, block of columns) of this program: a group of tiles, most of which share an expert,
    goes through its columns together, so that a block of weights is read from memory once."""
    program = tl.program_id(0)
    first = program // (GROUP * num_blocks) * GROUP
    size = tl.minimum(num_tiles - first, GROUP)
    within = program % (GROUP * num_blocks)
    return first + within % size, within // size


@triton.jit
def _rows_of(tile, tile_expert_ptr, starts_ptr, BLOCK_M: tl.constexpr):
    """(expert, first row, end of the expert's rows) of a tile; one past the end has none."""
    expert = tl.load(tile_expert_ptr + tile)
    start = tl.load(starts_ptr + expert)
    stop = tl.load(starts_ptr + expert + 1)
    first = start + (tile - start // BLOCK_M - expert) * BLOCK_M
    return expert, first, stop


@triton.jit(do_not_specialize=["num_tiles"])
def _gate_up_kernel(
    x_ptr,
    gate_up_ptr,
    order_ptr,
    starts_ptr,
    tile_expert_ptr,
    inner_ptr,
    x_row_stride,
    expert_stride,
    row_stride,
    up_offset,
    num_tiles,
    hidden,
    inner,
    top_k,
    GELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    tile, block = _place(num_tiles, tl.cdiv(inner, BLOCK_N), GROUP)
    expert, first, stop = _rows_of(tile, tile_expert_ptr, starts_ptr, BLOCK_M)
    if first >= stop:
        return
    row = first + tl.arange(0, BLOCK_M)
    pair = tl.load(order_ptr + row, mask=row < stop, other=0)
    token = (pair // top_k).to(tl.int64)
    column = block * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + token[:, None] * x_row_stride + depth[None, :]
    gate_ptrs = gate_up_ptr + expert.to(tl.int64) * expert_stride
    gate_ptrs = gate_ptrs + column.to(tl.int64)[None, :] * row_stride + depth[:, None]
    up_ptrs = gate_ptrs + up_offset
    gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for done in range(0, hidden, BLOCK_K):
        left = depth < hidden - done
        x = tl.load(x_ptrs + done, mask=(row < stop)[:, None] & left[None, :], other=0.0)
        wanted = left[:, None] & (column < inner)[None, :]
        gate = tl.dot(x, tl.load(gate_ptrs + done, mask=wanted, other=0.0), gate,
                      input_precision="ieee")  # fmt: skip
        up = tl.dot(x, tl.load(up_ptrs + done, mask=wanted, other=0.0), up,
                    input_precision="ieee")  # fmt: skip
    if GELU:  # the tanh form, (1 + tanh u) / 2 being the sigmoid of 2 u
        gate *= tl.sigmoid(1.5957691216057308 * gate * (1.0 + 0.044715 * gate * gate))
    else:
        gate *= tl.sigmoid(gate)
    offsets = row.to(tl.int64)[:, None] * inner + column[None, :]
    wanted = (row < stop)[:, None] & (column < inner)[None, :]
    tl.store(inner_ptr + offsets, (gate * up).to(inner_ptr.dtype.element_ty), mask=wanted)


@triton.jit(do_not_specialize=["num_tiles"])
def _down_kernel(
    inner_ptr,
    down_ptr,
    order_ptr,
    starts_ptr,
    tile_expert_ptr,
    rows_ptr,
    expert_stride,
    row_stride,
    num_tiles,
    hidden,
    inner,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    tile, block = _place(num_tiles, tl.cdiv(hidden, BLOCK_N), GROUP)
    expert, first, stop = _rows_of(tile, tile_expert_ptr, starts_ptr, BLOCK_M)
    if first >= stop:
        return
    row = first + tl.arange(0, BLOCK_M)
    column = block * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    inner_ptrs = inner_ptr + row.to(tl.int64)[:, None] * inner + depth[None, :]
    down_ptrs = down_ptr + expert.to(tl.int64) * expert_stride
    down_ptrs = down_ptrs + depth.to(tl.int64)[:, None] * row_stride + column[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for done in range(0, inner, BLOCK_K):
        left = depth < inner - done
        values = tl.load(inner_ptrs + done, mask=(row < stop)[:, None] & left[None, :], other=0.0)
        wanted = left[:, None] & (column < hidden)[None, :]
        down = tl.load(down_ptrs, mask=wanted, other=0.0)
        acc = tl.dot(values, down, acc, input_precision="ieee")
        down_ptrs += BLOCK_K * row_stride
    pair = tl.load(order_ptr + row, mask=row < stop, other=0)
    offsets = pair.to(tl.int64)[:, None] * hidden + column[None, :]
    wanted = (row < stop)[:, None] & (column < hidden)[None, :]
    tl.store(rows_ptr + offsets, acc.to(rows_ptr.dtype.element_ty), mask=wanted)


@triton.jit
def _sum_kernel(
    rows_ptr,
    weights_ptr,
    experts_ptr,
    out_ptr,
    hidden,
    first_expert,
    end_expert,
    TOP_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = tl.arange(0, BLOCK_N)
    pair = token * TOP_K + at
    expert = tl.load(experts_ptr + pair, mask=at < TOP_K, other=-1)
    held = (expert >= first_expert) & (expert < end_expert)
    weight = tl.load(weights_ptr + pair, mask=held, other=0.0)
    wanted = held[:, None] & (column < hidden)[None, :]  # rows of other experts are not written
    rows = tl.load(rows_ptr + pair[:, None] * hidden + column[None, :], mask=wanted, other=0.0)
    total = tl.sum(rows.to(tl.float32) * weight[:, None], 0)
    tl.store(
        out_ptr + token * hidden + column,
        total.to(out_ptr.dtype.element_ty),
        mask=column < hidden,
    )


def moe_mlp(
    x_TH: torch.Tensor,
    gate_up_EJH: torch.Tensor,
    down_EIH: torch.Tensor,
    weights_TN: torch.Tensor,
    experts_TN: torch.Tensor,
    *,
    first_expert: int = 0,
    activation: str = "silu",
    counts_E: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `ops.moe_mlp`; allocates `[S, I]` and `[P, H]` of x's dtype. Raises UnsupportedError."""
    check_moe_mlp(
        x_TH, gate_up_EJH, down_EIH, weights_TN, experts_TN, counts_E,
        first_expert=first_expert, activation=activation,
    )  # fmt: skip
    tokens, hidden = x_TH.shape
    num_experts, inner, _ = down_EIH.shape
    top_k, device = experts_TN.shape[1], x_TH.device
    out_TH = torch.empty(tokens, hidden, dtype=x_TH.dtype, device=device)
    if not tokens:
        return out_TH
    pairs = tokens * top_k
    max_held = tokens * min(top_k, num_experts)  # as a token's experts differ
    experts_TN, weights_TN = experts_TN.contiguous(), weights_TN.contiguous()
    key: dict[str, int | str] = {
        "dtype": str(x_TH.dtype).removeprefix("torch."),
        "hidden": hidden,
        "inner": inner,
        "experts": num_experts,
        "rows": _rows_per_expert(pairs, num_experts),
    }
    gate_up = config_for(GATE_UP, device, **key)
    block_m = gate_up.blocks["BLOCK_M"]
    down = config_for(DOWN, device, **key, block_m=block_m)
    num_tiles = pairs // block_m + num_experts

    order_P, starts_E, tile_expert = _sort(
        experts_TN, counts_E, num_experts, first_expert, num_tiles, max_held, block_m
    )
    inner_SI = torch.empty(max_held, inner, dtype=x_TH.dtype, device=device)
    _gate_up_kernel[(num_tiles * triton.cdiv(inner, gate_up.blocks["BLOCK_N"]),)](
        x_TH, gate_up_EJH, order_P, starts_E, tile_expert, inner_SI,
        x_TH.stride(0), gate_up_EJH.stride(0), gate_up_EJH.stride(1),
        inner * gate_up_EJH.stride(1), num_tiles, hidden, inner, top_k,
        GELU=activation != "silu", **gate_up.arguments(),
    )  # fmt: skip
    rows_PH = torch.empty(pairs, hidden, dtype=x_TH.dtype, device=device)
    _down_kernel[(num_tiles * triton.cdiv(hidden, down.blocks["BLOCK_N"]),)](
        inner_SI, down_EIH, order_P, starts_E, tile_expert, rows_PH,
        down_EIH.stride(0), down_EIH.stride(1), num_tiles, hidden, inner, **down.arguments(),
    )  # fmt: skip
    add = config_for(SUM, device, hidden=hidden, top_k=top_k)
    _sum_kernel[(tokens, triton.cdiv(hidden, add.blocks["BLOCK"]))](
        rows_PH, weights_TN, experts_TN, out_TH, hidden, first_expert, first_expert + num_experts,
        TOP_K=top_k, BLOCK_N=triton.next_power_of_2(top_k), **add.arguments(),
    )  # fmt: skip
    return out_TH


def _sort(
    experts_TN: torch.Tensor,
    counts_E: torch.Tensor | None,
    num_experts: int,
    first_expert: int,
    num_tiles: int,
    max_held: int,
    block_m: int,
) -> tuple[torch.Tensor, ...]:
    """Pairs by expert, where each expert's begin, and the expert of each tile."""
    pairs, device = experts_TN.numel(), experts_TN.device
    sizes = [-(-size // 4) * 4 for size in (pairs, num_experts + 1, num_tiles)]
    # at addresses of 16 bytes: each alignment would be compiled for
    order_P, starts_E, tile_expert = torch.empty(
        sum(sizes), dtype=torch.int32, device=device
    ).split(sizes)
    sort = config_for(SORT, device, experts=num_experts, pairs=triton.next_power_of_2(pairs))
    _sort_kernel[(num_experts,)](
        experts_TN, order_P, starts_E, tile_expert, counts_E,
        pairs, max_held, num_tiles, first_expert, BLOCK_M=block_m, **sort.arguments(),
    )  # fmt: skip
    return order_P, starts_E, tile_expert


def _rows_per_expert(pairs: int, num_experts: int) -> int:
    """About so many rows a tile could have, as a power of two up to its largest size."""
    rows: int = triton.next_power_of_2(triton.cdiv(pairs, num_experts))
    return min(MAX_BLOCK_M, rows)


SORT = Kernel(
    name="moe_mlp.sort",
    function=_sort_kernel,
    builds=(sort_build(True, 16, 512), sort_build(False, 128, 131_072)),
    default=sort_default,
)
GATE_UP = Kernel(
    name="moe_mlp.gate_up",
    function=_gate_up_kernel,
    builds=(*map(gate_up_build, KEYS), gate_up_build(KEYS[0], gelu=True)),
    default=functools.partial(product_default, matrices=2),
    candidates=functools.partial(product_candidates, matrices=2),
)
DOWN = Kernel(
    name="moe_mlp.down",
    function=_down_kernel,
    builds=tuple(map(down_build, KEYS)),
    default=functools.partial(product_default, matrices=1),
    candidates=functools.partial(product_candidates, matrices=1),
)
SUM = Kernel(
    name="moe_mlp.sum",
    function=_sum_kernel,
    builds=(
        sum_build("bfloat16", 2048, 8),
        sum_build("float16", 4096, 2),
        sum_build("float32", 2048, 8),
    ),
    default=sum_default,
    candidates=sum_candidates,
)
KERNELS = (SORT, GATE_UP, DOWN, SUM)
