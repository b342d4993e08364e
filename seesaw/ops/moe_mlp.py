"""The MLP of a layer with experts: each token goes through those that the router chose for it.

    out[t] = sum over n of weights[t, n] * down_e(act(gate_e x[t]) * up_e x[t]),  e = experts[t, n]

Bytes: 3 I H elements of each expert that some token chose, x and out once; 6 I H flops for each
pair of a token and an expert. Few tokens are bound by the weights of the experts they touch, many
by the products. Sources: sparsely gated experts (Shazeer et al. 2017), tokens sorted by expert into
blocks of one expert each (MegaBlocks, arXiv 2211.15841, section 5).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from seesaw.ops.gated_activation import Activation, gated_activation, gated_activation_reference
from seesaw.ops.registry import FLOAT_TOLERANCE, Bench, Case, Cost, Door, Op
from seesaw.ops.triton_backend import on_triton

# Shape letters: T tokens, H hidden, E experts that this rank holds, I an expert's inner size, J =
# 2 I, N experts of a token, M tokens of one expert.


def moe_mlp(
    x_TH: torch.Tensor,
    gate_up_EJH: torch.Tensor,
    down_EIH: torch.Tensor,
    weights_TN: torch.Tensor,
    experts_TN: torch.Tensor,
    *,
    first_expert: int = 0,
    activation: Activation = "silu",
    counts_E: torch.Tensor | None = None,
) -> torch.Tensor:
    """`[T, H]` of x's dtype: the weighted sum over those of a token's experts that are held here,
    first_expert .. first_expert + E. A token that has none of them gets 0.

    gate_up_EJH  of x's dtype, each expert's gate rows, then its up rows
    down_EIH     of x's dtype, each expert's down projection as `[in, out]`
    weights_TN, experts_TN  as of `moe_route`: float32, and int32 counted over all experts, each at
                 most once in a token
    counts_E     int64, or None: 1 is added for each expert that some token chose, that is for each
                 time that an expert's weights are read

    Products are rounded to the dtype, the sum over experts is float32 and rounded once. What a
    token gets does not depend on the others.
    """
    if on_triton(x_TH):
        from seesaw.kernels.moe_mlp import moe_mlp as launch

        return launch(
            x_TH, gate_up_EJH, down_EIH, weights_TN, experts_TN,
            first_expert=first_expert, activation=activation, counts_E=counts_E,
        )  # fmt: skip
    num_experts, top_k = len(gate_up_EJH), experts_TN.shape[1]
    out_TH = x_TH.new_zeros(x_TH.shape, dtype=torch.float32)
    local_P = experts_TN.flatten().long() - first_expert
    held_P = (local_P >= 0) & (local_P < num_experts)
    # pairs of a token and an expert, by expert; what is elsewhere last
    sorted_P, pairs_P = local_P.masked_fill(~held_P, num_experts).sort(stable=True)
    tokens_per_expert = sorted_P.bincount(minlength=num_experts + 1)[:num_experts].tolist()
    start = 0
    for expert, count in enumerate(tokens_per_expert):
        if count == 0:
            continue
        pairs_M = pairs_P[start : start + count]
        start += count
        tokens_M = pairs_M // top_k
        gate_up_MJ = F.linear(x_TH[tokens_M], gate_up_EJH[expert])
        rows_MH = torch.mm(gated_activation(gate_up_MJ, activation), down_EIH[expert])
        weights_M1 = weights_TN.flatten()[pairs_M, None]
        out_TH.index_add_(0, tokens_M, rows_MH.float().mul_(weights_M1))
        if counts_E is not None:
            counts_E[expert] += 1
    return out_TH.to(x_TH.dtype)


def moe_mlp_reference(
    x_TH: torch.Tensor,
    gate_up_EJH: torch.Tensor,
    down_EIH: torch.Tensor,
    weights_TN: torch.Tensor,
    experts_TN: torch.Tensor,
    *,
    first_expert: int = 0,
    activation: Activation = "silu",
    counts_E: torch.Tensor | None = None,
) -> torch.Tensor:
    out = torch.zeros(x_TH.shape, dtype=torch.float64)
    x, gate_up, down = x_TH.double(), gate_up_EJH.double(), down_EIH.double()
    touched = set()
    for token, experts in enumerate(experts_TN.tolist()):
        for expert, weight in zip(experts, weights_TN[token].double(), strict=True):
            local = expert - first_expert
            if 0 <= local < len(gate_up):
                touched.add(local)
                inner = gated_activation_reference(gate_up[local] @ x[token], activation)
                out[token] += weight * (inner @ down[local])
    if counts_E is not None:
        counts_E[sorted(touched)] += 1
    return out.to(x_TH.dtype)


def _make_inputs(generator: torch.Generator, case: Case, dtype: torch.dtype) -> dict[str, object]:
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    def matrices(rows: int, columns: int, depth: int) -> torch.Tensor:
        """One for each expert: one of them with rows longer or shorter, as drawing all numbers of
        a real model would take a minute."""
        scale: float = depth**-0.5
        lengths = 0.5 + torch.rand((case["experts"], rows, 1), generator=generator)
        return (random(rows, columns) * scale).to(dtype) * lengths.to(dtype)

    tokens, hidden, inner = case["tokens"], case["hidden"], case["inner"]
    first, held = case["first"], case["held"]
    chosen = [
        torch.randperm(case["popular"], generator=generator)[: case["top_k"]] for _ in range(tokens)
    ]
    return {
        "x_TH": random(tokens, hidden).to(dtype),
        "gate_up_EJH": matrices(2 * inner, hidden, hidden)[first : first + held],
        "down_EIH": matrices(inner, hidden, inner)[first : first + held],
        "weights_TN": random(tokens, case["top_k"]).softmax(-1),
        "experts_TN": torch.stack(chosen).int()
        if chosen
        else torch.zeros(0, case["top_k"], dtype=torch.int32),
        "first_expert": first,
        "activation": case["activation"],
        "counts_E": torch.arange(held) if case["counts"] else None,
    }


def _cost(case: Case, dtype: torch.dtype) -> Cost:
    tokens, hidden, inner = case["tokens"], case["hidden"], case["inner"]
    matrices = 3 * hidden * inner
    # of all pairs so many are this rank's where experts are equally liked
    pairs = tokens * case["top_k"] * case["held"] // case["experts"]
    elements = min(pairs, case["held"]) * matrices + 2 * tokens * hidden
    num_bytes = elements * dtype.itemsize + 8 * tokens * case["top_k"]
    return Cost(num_bytes, 2 * pairs * matrices)


def _case(tokens: int, experts: int, top_k: int, hidden: int, inner: int, **other: object) -> Case:
    """`popular`: tokens choose among the first so many experts; `held` from `first` on."""
    case = {"tokens": tokens, "experts": experts, "top_k": top_k, "hidden": hidden, "inner": inner}
    plain = {"first": 0, "held": experts, "popular": experts, "activation": "silu", "counts": True}
    return {**case, **plain, **other}


OP = Op(
    name="moe_mlp",
    function=moe_mlp,
    reference=moe_mlp_reference,
    make_inputs=_make_inputs,
    cases=(
        _case(0, 4, 2, 32, 16),
        _case(1, 8, 2, 64, 48),
        _case(19, 6, 3, 40, 24, first=2, held=3),
        _case(7, 1, 1, 33, 17, activation="gelu_pytorch_tanh"),
        _case(5, 4, 4, 32, 16, counts=False),
        _case(3, 16, 2, 48, 20, popular=2),  # most experts have no token
        _case(4, 8, 2, 32, 16, popular=4, first=4, held=4),  # all are elsewhere
        _case(70, 3, 2, 72, 36),  # several tiles of an expert
    ),
    tolerance=FLOAT_TOLERANCE,
    cost=_cost,
    bench={
        f"{name}, {tokens} tokens": Bench(case=_case(tokens, *sizes), devices=("cuda",))
        for name, sizes in (
            ("Mixtral-8x7B", (8, 2, 4096, 14336)),
            ("Qwen3-30B-A3B", (128, 8, 2048, 768)),
        )
        for tokens in (1, 64, 2048)
    },
    mutates=("counts_E",),
    door=Door(moe_mlp, lambda x_TH, *_, **__: x_TH.new_empty(x_TH.shape)),
)
