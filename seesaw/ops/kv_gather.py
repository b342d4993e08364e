"""KV of blocks from a device pool to memory in the order of the host tier, in one launch; its way
back is `kv_scatter`.

    tier[s div R, k, l, v, (s mod R) S + i] = pool[l, b, k, v, i]     for the n-th b of blocks and
                                                                      s of slots;  R = P / S

`pool` and `tier` are views, so any range of layers and heads of either is a slice of it. The tier
is a piece of device memory in its order, from where the copy engine takes long runs, or the host
tier itself where it is page-locked: kernels then write over the bus.

Bytes: the blocks read once, written once. No arithmetic but the cast: a tier of float8_e4m3fn
beside a pool of a wider type holds value / scale of the head, rounded once to even, at most 448.
"""

from __future__ import annotations

import torch

from seesaw.ops.registry import EXACT, Bench, Case, Cost, Door, Link, Op
from seesaw.ops.triton_backend import on_triton

# Shape letters: L layers, B blocks of the pool, K KV heads, 2 (K, V), S tokens of a block, D head
# size, T blocks of the tier, P tokens of one of them, N blocks to copy.

LARGEST_FP8 = 448.0


def kv_gather(
    pool_LBK2SD: torch.Tensor,
    tier_TKL2PD: torch.Tensor,
    blocks_N: torch.Tensor,
    slots_N: torch.Tensor,
    scale_K: torch.Tensor | None = None,
) -> None:
    """Copy blocks `blocks_N` of the pool to `slots_N` of the tier, slot s being part s mod (P / S)
    of tier block s div (P / S); both int32, in bounds (not checked: they are on the device), slots
    all different.

    Pool and tier: any strides, tiles `[S, D]` contiguous; P a multiple of S; equal dtypes, any bits
    copied as they are, or a tier of float8_e4m3fn beside bfloat16, float16 or float32, with
    `scale_K` float32 (None = 1). Kernels raise UnsupportedError for anything else.
    """
    if on_triton(pool_LBK2SD):
        from seesaw.kernels.kv_gather import kv_gather as launch

        launch(pool_LBK2SD, tier_TKL2PD, blocks_N, slots_N, scale_K)
        return
    blocks = pool_LBK2SD.index_select(1, blocks_N).permute(1, 2, 0, 3, 4, 5)
    if tier_TKL2PD.dtype != pool_LBK2SD.dtype:
        scale = 1.0 if scale_K is None else scale_K.view(-1, 1, 1, 1, 1)
        blocks = (blocks.float() / scale).clamp_(-LARGEST_FP8, LARGEST_FP8).to(tier_TKL2PD.dtype)
    at = index_of(tier_TKL2PD, pool_LBK2SD, slots_N)
    parts_of(tier_TKL2PD, pool_LBK2SD.shape[4])[at] = blocks


def parts_of(tier_TKL2PD: torch.Tensor, block_size: int) -> torch.Tensor:
    """The tier as `[T, R, K, L, 2, S, D]`, a view."""
    blocks, heads, layers, two, tokens, head_dim = tier_TKL2PD.shape
    shape = (blocks, heads, layers, two, tokens // block_size, block_size, head_dim)
    return tier_TKL2PD.view(shape).movedim(4, 1)


def index_of(
    tier_TKL2PD: torch.Tensor, pool_LBK2SD: torch.Tensor, slots_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of slots in the first two dims of `parts_of`."""
    per_tier_block = tier_TKL2PD.shape[4] // pool_LBK2SD.shape[4]
    slots = slots_N.long()
    return slots // per_tier_block, slots % per_tier_block


def kv_gather_reference(
    pool_LBK2SD: torch.Tensor,
    tier_TKL2PD: torch.Tensor,
    blocks_N: torch.Tensor,
    slots_N: torch.Tensor,
    scale_K: torch.Tensor | None = None,
) -> None:
    size = pool_LBK2SD.shape[4]
    for block, slot in zip(blocks_N.tolist(), slots_N.tolist(), strict=True):
        first, part = divmod(slot, tier_TKL2PD.shape[4] // size)
        content = pool_LBK2SD[:, block].transpose(0, 1)
        if tier_TKL2PD.dtype != pool_LBK2SD.dtype:
            if scale_K is not None:
                content = content.float() / scale_K[:, None, None, None, None]
            content = content.float().clamp(-448, 448).to(tier_TKL2PD.dtype)
        tier_TKL2PD[first, :, :, :, part * size : (part + 1) * size] = content


def make_inputs(generator: torch.Generator, case: Case, dtype: torch.dtype) -> dict[str, object]:
    """Of kv_gather and kv_scatter: slices of a larger pool and tier, blocks in no order."""
    names = ("layers", "kv_heads", "block_size", "per_tier_block", "head_dim", "blocks")
    layers, heads, size, parts, head_dim, count = (case[name] for name in names)
    num_tier_blocks = -(-count // parts) + 1
    fp8 = torch.float8_e4m3fn

    def random(*shape: int) -> torch.Tensor:
        # some beyond what float8 can hold
        return torch.randn(shape, generator=generator) * 10.0 ** torch.randint(
            -4, 4, shape, generator=generator
        )

    pool = random(layers + 1, count + 2, heads + 1, 2, size, head_dim).to(dtype)
    tier = random(num_tier_blocks, heads + 2, layers + 2, 2, parts * size, head_dim)
    tier = tier.clamp(-448, 448).to(fp8) if case["cast"] else tier.to(dtype)
    scale = torch.rand(heads, generator=generator) + 0.5
    slots = torch.randperm(num_tier_blocks * parts, generator=generator)[:count]
    return {
        "pool_LBK2SD": pool[1:, :, 1:],
        "tier_TKL2PD": tier[:, 1:-1, 1:-1],
        "blocks_N": torch.randperm(count + 2, generator=generator)[:count].int(),
        "slots_N": slots.int(),
        "scale_K": scale if case["cast"] else None,
    }


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """Of kv_gather and kv_scatter."""
    names = ("layers", "kv_heads", "block_size", "head_dim", "blocks")
    elements = 2
    for name in names:
        elements *= case[name]
    tier_itemsize = 1 if case["cast"] else dtype.itemsize
    return Cost(elements * (dtype.itemsize + tier_itemsize) + 8 * case["blocks"], 0)


CASES: tuple[Case, ...] = tuple(
    dict(
        zip(
            ("layers", "kv_heads", "block_size", "per_tier_block", "head_dim", "blocks", "cast"),
            sizes,
            strict=True,
        )
    )
    for sizes in (
        (2, 2, 16, 4, 64, 0, False),
        (1, 1, 1, 1, 3, 1, False),
        (2, 3, 16, 4, 80, 5, False),
        (1, 2, 16, 2, 96, 3, True),
        (2, 1, 32, 1, 24, 2, True),
    )
)


def bench(link: Link) -> dict[str, Bench]:
    """Of kv_gather and kv_scatter: half of the heads of an 8B model, tier blocks of 64 tokens."""
    names = ("layers", "kv_heads", "block_size", "per_tier_block", "head_dim", "blocks", "cast")
    cases = {
        f"{layers} layers, 4 of 8 heads x 128, {blocks} blocks of 32{label}": dict(
            zip(names, (layers, 4, 32, 2, 128, blocks, cast), strict=True)
        )
        for layers, blocks in ((32, 128), (4, 256))
        for cast, label in ((False, ""), (True, ", float8 tier"))
    }
    return {
        name: Bench(
            case=case,
            devices=("cuda",),
            host=("tier_TKL2PD",),
            link=link,
            link_bytes=cost(case, torch.bfloat16).num_bytes // (3 if case["cast"] else 2),
            aim=None if case["cast"] else 0.9,
        )
        for name, case in cases.items()
    }


TOLERANCE = dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), EXACT)

OP = Op(
    name="kv_gather",
    function=kv_gather,
    reference=kv_gather_reference,
    make_inputs=make_inputs,
    cases=CASES,
    tolerance=TOLERANCE,
    cost=cost,
    bench=bench("to_host"),
    door=Door(kv_gather, lambda *_: None),
    mutates=("tier_TKL2PD",),
)
