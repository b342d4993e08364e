"""Router of a layer with experts: softmax and the highest few of a row (formula and bytes:
ops/moe_route.py).

A program holds some tokens' logits in registers; the highest is taken out as often as a token has
experts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from seesaw.kernels.checks import FLOATS, expect, expect_tensors
from seesaw.kernels.kernel import Build, Config, Kernel, Key, Target
from seesaw.kernels.tuning import config_for

# Shape letters: T tokens, E experts, N experts of a token.

MAX_EXPERTS = 4096
TILE = 512
MAX_TOKENS = 32
OP = "moe_route"


@triton.jit(do_not_specialize=["num_tokens"])
def _moe_route_kernel(
    logits_ptr,
    weights_ptr,
    experts_ptr,
    logits_row_stride,
    num_tokens,
    num_experts,
    TOP_K: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    expert = tl.arange(0, BLOCK_E)
    at = tl.arange(0, BLOCK_N)
    here = token < num_tokens
    inside = here[:, None] & (expert < num_experts)[None, :]
    offsets = token.to(tl.int64)[:, None] * logits_row_stride + expert[None, :]
    logits = tl.load(logits_ptr + offsets, mask=inside, other=float("-inf")).to(tl.float32)
    odd = tl.max((logits != logits).to(tl.int32), 1) > 0
    ranked = tl.where(logits == logits, logits, float("-inf"))
    top = tl.where(here, tl.max(ranked, 1), 0.0)
    total = tl.where(here, tl.sum(tl.exp(ranked - top[:, None]), 1), 1.0)

    weights = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    experts = tl.zeros([BLOCK_T, BLOCK_N], tl.int32)
    free = expert[None, :] < num_experts  # not taken yet; -inf may be an expert's logit
    free = free & (token >= 0)[:, None]
    for n in range(TOP_K):
        value = tl.max(tl.where(free, ranked, float("-inf")), 1)
        equal = free & (ranked == value[:, None])
        chosen = tl.min(tl.where(equal, expert[None, :], BLOCK_E), 1)
        free = free & (expert[None, :] != chosen[:, None])
        weight = tl.where(odd, float("nan"), tl.exp(value - top) / total)
        weights = tl.where(at[None, :] == n, weight[:, None], weights)
        experts = tl.where(at[None, :] == n, chosen[:, None], experts)
    if RENORMALIZE:
        weights /= tl.where(here, tl.sum(weights, 1), 1.0)[:, None]
    out = token.to(tl.int64)[:, None] * TOP_K + at[None, :]
    wanted = here[:, None] & (at < TOP_K)[None, :]
    tl.store(weights_ptr + out, weights, mask=wanted)
    tl.store(experts_ptr + out, experts, mask=wanted)


def moe_route(
    logits_TE: torch.Tensor, top_k: int, *, renormalize: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `ops.moe_route`. Raises UnsupportedError."""
    expect_tensors(OP, FLOATS, logits=logits_TE)
    expect(OP, "dims of logits", logits_TE.dim(), 2, logits_TE.dim() == 2)
    tokens, num_experts = logits_TE.shape
    expect(
        OP, "experts", num_experts, f"1 to {MAX_EXPERTS}", 1 <= num_experts <= MAX_EXPERTS
    )  # fmt: skip
    expect(OP, "top_k", top_k, f"1 to {num_experts}", 1 <= top_k <= num_experts)
    expect(OP, "strides of logits", logits_TE.stride(), "1 in the last dim",
           logits_TE.stride(1) == 1 or num_experts == 1)  # fmt: skip
    weights_TN = torch.empty(tokens, top_k, dtype=torch.float32, device=logits_TE.device)
    experts_TN = torch.empty(tokens, top_k, dtype=torch.int32, device=logits_TE.device)
    if tokens:
        blocks = {
            "BLOCK_E": triton.next_power_of_2(num_experts),
            "BLOCK_N": triton.next_power_of_2(top_k),
        }
        config = config_for(KERNEL, logits_TE.device, experts=num_experts, top_k=top_k)
        _moe_route_kernel[(triton.cdiv(tokens, config.blocks["BLOCK_T"]),)](
            logits_TE,
            weights_TN,
            experts_TN,
            logits_TE.stride(0),
            tokens,
            num_experts,
            TOP_K=top_k,
            RENORMALIZE=renormalize,
            **blocks,
            **config.arguments(),
        )
    return weights_TN, experts_TN


def _default(key: Key, target: Target) -> Config:
    """One warp for so many tokens that each of its threads has 16 logits."""
    block = triton.next_power_of_2(int(key["experts"]))
    tokens = min(MAX_TOKENS, max(1, TILE // block))
    return Config({"BLOCK_T": tokens}, num_warps=max(1, block // TILE))


def _candidates(key: Key, target: Target) -> tuple[Config, ...]:
    return tuple(
        Config({"BLOCK_T": tokens}, num_warps=num_warps)
        for tokens in (1, 2, 4, 8, 16, 32)
        for num_warps in (1, 2, 4)
    )


def _build(experts: int, top_k: int, dtype: str, renormalize: bool) -> Build:
    return Build(
        key={"experts": experts, "top_k": top_k},
        signature={
            "logits_ptr": dtype,
            "weights_ptr": "*fp32",
            "experts_ptr": "*i32",
            "logits_row_stride": "i32",
            "num_tokens": "i32",
            "num_experts": "i32",
        },
        constants={
            "TOP_K": top_k,
            "RENORMALIZE": renormalize,
            "BLOCK_E": triton.next_power_of_2(experts),
            "BLOCK_N": triton.next_power_of_2(top_k),
        },
        aligned=("logits_ptr", "weights_ptr", "experts_ptr"),
    )


KERNEL = Kernel(
    name="moe_route",
    function=_moe_route_kernel,
    builds=(
        _build(8, 2, "*bf16", True),
        _build(128, 8, "*bf16", True),
        _build(128, 8, "*fp16", False),
        _build(60, 4, "*fp32", False),
        _build(1024, 16, "*bf16", True),
    ),
    default=_default,
    candidates=_candidates,
)
KERNELS = (KERNEL,)
