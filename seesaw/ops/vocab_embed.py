"""Rows of an embedding table that holds a part of the vocabulary.

    out[t] = scale * weight[id[t] - first_id]   where the table holds the id, else 0

The sum over ranks that hold the other parts is exact. Bytes: T H elements read (less where ids are
elsewhere) and as many written, 8 T of ids; one flop per element: memory-bound.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from seesaw.ops.registry import EXACT, Bench, Case, Cost, Door, Op
from seesaw.ops.shapes import LLAMA_8B, SMOLLM2_135M
from seesaw.ops.triton_backend import on_triton

# Shape letters: T tokens, V rows of the table, H hidden.


def vocab_embed(
    token_ids_T: torch.Tensor, weight_VH: torch.Tensor, first_id: int = 0, scale: float = 1.0
) -> torch.Tensor:
    """`[T, H]` of the table's dtype, contiguous.

    token_ids_T  int64; any: ids outside `first_id` .. `first_id + V` give rows of 0
    weight_VH    V >= 1, rows at any distance, contiguous in H
    scale        multiplies, rounded once; round it to the table's dtype for what models compute
    """
    if on_triton(weight_VH):
        from seesaw.kernels.vocab_embed import vocab_embed as launch

        return launch(token_ids_T, weight_VH, first_id, scale)
    local_T = token_ids_T - first_id
    elsewhere_T = (local_T < 0) | (local_T >= len(weight_VH))
    hidden_TH = F.embedding(local_T.masked_fill_(elsewhere_T, 0), weight_VH)
    hidden_TH.masked_fill_(elsewhere_T[:, None], 0)
    return hidden_TH if scale == 1.0 else hidden_TH.mul_(scale)


def vocab_embed_reference(
    token_ids_T: torch.Tensor, weight_VH: torch.Tensor, first_id: int = 0, scale: float = 1.0
) -> torch.Tensor:
    out = torch.zeros(len(token_ids_T), weight_VH.shape[1], dtype=torch.float64)
    for row, token in enumerate(token_ids_T.tolist()):
        if first_id <= token < first_id + len(weight_VH):
            out[row] = weight_VH[token - first_id].double() * scale
    return out.to(weight_VH.dtype)


def _make_inputs(generator: torch.Generator, case: Case, dtype: torch.dtype) -> dict[str, object]:
    first, vocab = case["first_id"], case["vocab"]
    ids = torch.randint(2 * vocab, (case["tokens"],), generator=generator) + first - vocab // 2
    table = torch.randn(vocab, case["hidden"] + 8, generator=generator).to(dtype)
    return {
        "token_ids_T": ids,
        "weight_VH": table[:, : case["hidden"]],
        "first_id": first,
        "scale": case["scale"],
    }


def _cost(case: Case, dtype: torch.dtype) -> Cost:
    elements = case["tokens"] * case["hidden"]
    return Cost(2 * elements * dtype.itemsize + 8 * case["tokens"], elements)


OP = Op(
    name="vocab_embed",
    function=vocab_embed,
    reference=vocab_embed_reference,
    make_inputs=_make_inputs,
    cases=(
        {"tokens": 0, "vocab": 5, "hidden": 16, "first_id": 0, "scale": 1.0},
        {"tokens": 1, "vocab": 1, "hidden": 1, "first_id": 0, "scale": 1.0},
        {"tokens": 9, "vocab": 33, "hidden": 577, "first_id": 66, "scale": 25.25},
        {"tokens": 40, "vocab": 20, "hidden": 64, "first_id": 20, "scale": 1.0},
    ),
    tolerance=dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), EXACT),
    cost=_cost,
    door=Door(vocab_embed, lambda ids, table, *_: table.new_empty(len(ids), table.shape[1])),
    bench={
        f"{model.name}, {tokens} tokens": Bench(
            case={
                "tokens": tokens,
                "vocab": model.vocab,
                "hidden": model.hidden,
                "first_id": 0,
                "scale": 1.0,
            }
        )
        for model in (SMOLLM2_135M, LLAMA_8B)
        for tokens in (1, 64, 2048)
    },
)
