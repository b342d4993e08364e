"""Which experts compute a token, and how much each of them counts.

    p = softmax(logits);  experts = the N highest;  weights = p[experts]     (/ their sum)

Softmax in float32 over all experts, as Mixtral (arXiv 2401.04088, section 2.1) and Qwen3-MoE do.
Bytes: T E logits read, 8 T N written; about 4 T E + T N E flops: bound by the launch.
"""

from __future__ import annotations

import torch

from seesaw.ops.native import native, usable
from seesaw.ops.registry import Bench, Case, Cost, Door, Op, Tolerance
from seesaw.ops.triton_backend import on_triton

# Shape letters: T tokens, E experts, N experts of a token (top_k).


def moe_route(
    logits_TE: torch.Tensor, top_k: int, *, renormalize: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights `[T, N]` float32, experts `[T, N]` int32) of each token, the highest first.

    logits_TE    the router's product, float32, bfloat16 or float16
    top_k        N, from 1 to E; ValueError else
    renormalize  weights of a token add up to 1 (`norm_topk_prob`), else they are probabilities

    Experts are chosen by their logits: the lower index among equals, NaN after all others. A token
    with a NaN logit has NaN weights, and experts that exist.
    """
    num_experts = logits_TE.shape[1]
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k: got {top_k}, expected 1 to {num_experts}, the number of experts")
    if on_triton(logits_TE):
        from seesaw.kernels.moe_route import moe_route as launch

        return launch(logits_TE, top_k, renormalize=renormalize)
    wide_TE = logits_TE.float().contiguous()
    if (module := native() if usable(wide_TE) else None) is not None:
        weights_TN = torch.empty(len(wide_TE), top_k)
        experts_TN = torch.empty(len(wide_TE), top_k, dtype=torch.int32)
        module.moe_route(
            logits=wide_TE.data_ptr(),
            tokens=len(wide_TE),
            num_experts=num_experts,
            top_k=top_k,
            renormalize=renormalize,
            weights=weights_TN.data_ptr(),
            experts=experts_TN.data_ptr(),
        )
        return weights_TN, experts_TN
    # unlike topk, a stable sort says which of equals comes first
    ranked_TE = wide_TE.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    experts_TN = ranked_TE.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights_TN = wide_TE.softmax(-1).gather(-1, experts_TN)
    if renormalize:
        weights_TN /= weights_TN.sum(-1, keepdim=True)
    return weights_TN, experts_TN.int()


def _fake(logits_TE: torch.Tensor, top_k: int, **_: object) -> tuple[torch.Tensor, torch.Tensor]:
    weights_TN = logits_TE.new_empty((len(logits_TE), top_k), dtype=torch.float32)
    return weights_TN, weights_TN.new_empty(weights_TN.shape, dtype=torch.int32)


def moe_route_reference(
    logits_TE: torch.Tensor, top_k: int, *, renormalize: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = len(logits_TE)
    weights = torch.zeros(tokens, top_k, dtype=torch.float64)
    experts = torch.zeros(tokens, top_k, dtype=torch.int32)
    for token, row in enumerate(logits_TE.double()):
        shares = (row - row.max()).exp()
        shares /= shares.sum()
        ranked = sorted((-logit, expert) for expert, logit in enumerate(row.tolist()))
        order = [expert for _, expert in ranked[:top_k]]
        weights[token] = shares[order] / (shares[order].sum() if renormalize else 1.0)
        experts[token] = torch.tensor(order)
    return weights.float(), experts


def _make_inputs(generator: torch.Generator, case: Case, dtype: torch.dtype) -> dict[str, object]:
    shape = (case["tokens"], case["experts"])
    logits = 3 * torch.randn(shape, generator=generator)
    if case["equals"]:
        logits = logits.round()  # many are equal
    return {
        "logits_TE": logits.to(dtype),
        "top_k": case["top_k"],
        "renormalize": case["renormalize"],
    }


def _cost(case: Case, dtype: torch.dtype) -> Cost:
    logits, chosen = case["tokens"] * case["experts"], case["tokens"] * case["top_k"]
    return Cost(logits * dtype.itemsize + 8 * chosen, 4 * logits + chosen * case["experts"])


OP = Op(
    name="moe_route",
    function=moe_route,
    reference=moe_route_reference,
    make_inputs=_make_inputs,
    cases=tuple(
        {
            "tokens": tokens,
            "experts": experts,
            "top_k": top_k,
            "equals": equals,
            "renormalize": renormalize,
        }
        for tokens, experts, top_k, equals in (
            (0, 8, 2, False),
            (1, 8, 2, False),
            (3, 1, 1, False),
            (5, 6, 6, True),
            (17, 128, 8, False),
            (9, 40, 5, True),
        )
        for renormalize in (False, True)
    ),
    # weights are float32 whatever the logits are
    tolerance=dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), Tolerance(2e-6, 2e-6)),
    cost=_cost,
    bench={
        f"{experts} experts, {top_k} a token, {tokens} tokens": Bench(
            case={
                "tokens": tokens,
                "experts": experts,
                "top_k": top_k,
                "equals": False,
                "renormalize": True,
            }
        )
        for experts, top_k in ((8, 2), (128, 8))  # of Mixtral, of Qwen3-MoE
        for tokens in (1, 64, 2048)
    },
    door=Door(moe_route, _fake),
)
