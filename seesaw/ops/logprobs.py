"""Log-probabilities of drawn tokens, of the most probable ones, and the rank of the drawn one.

    logprob(t) = logits[t] - log(sum(exp(logits)));   rank(t) = 1 + #(logits > logits[t])

From the raw logits, before penalties and temperature. Bytes: the logits about three times;
memory-bound.
"""

from __future__ import annotations

from types import ModuleType

import torch

from seesaw.ops.native import native
from seesaw.ops.registry import Bench, Case, Cost, Door, Op, Tolerance
from seesaw.ops.shapes import SMALL
from seesaw.ops.top_tokens import top_tokens
from seesaw.ops.triton_backend import on_triton
from seesaw.plan.sampling_workspace import rows_at_once

# Shape letters: S rows, N rows of them at once, V vocabulary, k most probable tokens.


def logprobs(
    logits_SV: torch.Tensor, token_ids_S: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(logprob `[S]`, rank `[S]` from 1, top ids `[S, k']`, top logprobs `[S, k']`), k' = min(k,
    V).

    logits_SV float32, not changed; token_ids_S int64. Log-probabilities are float32, ids and ranks
    int64. Top tokens come in descending order, equals by id.
    """
    if on_triton(logits_SV):
        from seesaw.kernels.logprobs import logprobs as launch

        return launch(logits_SV, token_ids_S, k)
    if (cpu := native()) is not None and logits_SV.is_cpu and logits_SV.dtype == torch.float32:
        return _logprobs_cpu(cpu, logits_SV, token_ids_S, min(k, logits_SV.shape[1]))
    at_once = rows_at_once(logits_SV.shape[1])
    parts = [
        _logprobs(logits_SV[rows : rows + at_once], token_ids_S[rows : rows + at_once], k)
        for rows in range(0, max(1, len(logits_SV)), at_once)
    ]
    sampled, ranks, ids, tops = zip(*parts, strict=True)
    return torch.cat(sampled), torch.cat(ranks), torch.cat(ids), torch.cat(tops)


def _logprobs_cpu(
    cpu: ModuleType, logits_SV: torch.Tensor, token_ids_S: torch.Tensor, top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, vocab = logits_SV.shape
    if token_ids_S.shape != (rows,):
        raise ValueError(f"tokens: got {list(token_ids_S.shape)} for {rows} rows")
    token_ids_S = token_ids_S.long().contiguous()
    if logits_SV.stride(1) != 1:
        logits_SV = logits_SV.contiguous()
    sampled_S = torch.empty(rows)
    ranks_S = torch.empty(rows, dtype=torch.int64)
    ids_Sk = torch.empty(rows, top, dtype=torch.int64)
    top_Sk = torch.empty(rows, top)
    cpu.logprobs(
        rows=rows,
        vocab=vocab,
        logits=logits_SV.data_ptr(),
        ld_logits=logits_SV.stride(0),
        tokens=token_ids_S.data_ptr(),
        top=top,
        logprobs=sampled_S.data_ptr(),
        ranks=ranks_S.data_ptr(),
        top_ids=ids_Sk.data_ptr(),
        top_logprobs=top_Sk.data_ptr(),
    )
    return sampled_S, ranks_S, ids_Sk, top_Sk


def _logprobs(
    logits_NV: torch.Tensor, token_ids_N: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    chosen_N1 = logits_NV.gather(1, token_ids_N[:, None])
    norm_N1 = logits_NV.logsumexp(-1, keepdim=True)
    rank_N = (logits_NV > chosen_N1).sum(-1) + 1
    count = min(k, logits_NV.shape[1])
    if count and len(logits_NV):
        top_Nk, ids_Nk = top_tokens(logits_NV, torch.full_like(token_ids_N, count))
    else:
        top_Nk = logits_NV.new_empty(len(logits_NV), count)
        ids_Nk = token_ids_N.new_empty(len(logits_NV), count)
    return (chosen_N1 - norm_N1).squeeze(1), rank_N, ids_Nk, top_Nk - norm_N1


def _fake(
    logits_SV: torch.Tensor, token_ids_S: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, most = len(logits_SV), min(k, logits_SV.shape[1])
    new = logits_SV.new_empty
    return (
        new(rows, dtype=torch.float32),
        new(rows, dtype=torch.int64),
        new(rows, most, dtype=torch.int64),
        new(rows, most, dtype=torch.float32),
    )


def logprobs_reference(
    logits_SV: torch.Tensor, token_ids_S: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    logprobs_SV = logits_SV.double().log_softmax(-1)
    sampled_S1 = logprobs_SV.gather(1, token_ids_S[:, None])
    top_SV, ids_SV = logits_SV.sort(dim=-1, descending=True, stable=True)
    rank_S = (top_SV > logits_SV.gather(1, token_ids_S[:, None])).sum(-1) + 1
    top_Sk = logprobs_SV.gather(1, ids_SV[:, :k]).float()
    return sampled_S1.squeeze(1).float(), rank_S, ids_SV[:, :k], top_Sk


def _make_inputs(generator: torch.Generator, case: Case, dtype: torch.dtype) -> dict[str, object]:
    shape = (case["rows"], case["vocab"])
    # bf16 values, so that there are equals
    logits = (torch.randn(shape, generator=generator) * 3).bfloat16().to(dtype)
    tokens = torch.randint(case["vocab"], (case["rows"],), generator=generator)
    return {"logits_SV": logits, "token_ids_S": tokens, "k": case["k"]}


def _cost(case: Case, dtype: torch.dtype) -> Cost:
    elements = case["rows"] * case["vocab"]
    # the drawn token, its logprob and rank; id and logprob of each top token
    of_row = 20 + 12 * min(case["k"], case["vocab"])
    return Cost(elements * dtype.itemsize + of_row * case["rows"], 3 * elements)


OP = Op(
    name="logprobs",
    function=logprobs,
    reference=logprobs_reference,
    make_inputs=_make_inputs,
    cases=(
        {"rows": 0, "vocab": 8, "k": 2},
        {"rows": 1, "vocab": 1, "k": 5},
        {"rows": 3, "vocab": 50, "k": 0},
        {"rows": 9, "vocab": 777, "k": 20},
        {"rows": 4, "vocab": 9000, "k": 1},
    ),
    tolerance={torch.float32: Tolerance(1e-5, 1e-5)},
    cost=_cost,
    door=Door(logprobs, _fake),
    bench={
        f"{model.name}, {rows} rows": Bench(
            case={"rows": rows, "vocab": model.vocab, "k": 5}, dtype=torch.float32
        )
        for model in SMALL
        for rows in (1, 64)
    },
)
