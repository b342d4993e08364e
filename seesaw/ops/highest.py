"""The highest logit of each row and its token: greedy decoding, or a rank's part of it.

    value = max(logits);  id = first_id + the lowest column that holds it

Bytes: the logits once; memory-bound.
"""

from __future__ import annotations

import torch

from seesaw.ops.registry import EXACT, Bench, Case, Cost, Door, Op
from seesaw.ops.shapes import LLAMA_8B, SMALL
from seesaw.ops.triton_backend import on_triton

# Shape letters: S rows, V vocabulary, or a rank's part of it.


def highest(logits_SV: torch.Tensor, first_id: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(value `[S]` float32, id `[S]` int64) of the highest of each row, the lowest id among equals.

    logits_SV   bfloat16, float16 or float32, V >= 1, without NaN; -inf may be among them
    first_id    the id of column 0, where V are one rank's rows of the vocabulary
    """
    if on_triton(logits_SV):
        from seesaw.kernels.highest import highest as launch

        return launch(logits_SV, first_id)
    value_S, column_S = logits_SV.max(-1)
    return value_S.float(), column_S.add_(first_id)


def _fake(logits_SV: torch.Tensor, first_id: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rows = len(logits_SV)
    new = logits_SV.new_empty
    return new(rows, dtype=torch.float32), new(rows, dtype=torch.int64)


def highest_reference(
    logits_SV: torch.Tensor, first_id: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    best = [max(range(len(row)), key=lambda i: (row[i], -i)) for row in logits_SV.tolist()]
    id_S = torch.tensor(best, dtype=torch.int64)
    return logits_SV.gather(1, id_S[:, None])[:, 0].float(), id_S + first_id


def _make_inputs(generator: torch.Generator, case: Case, dtype: torch.dtype) -> dict[str, object]:
    # few values, so that there are equals
    logits = torch.randn(case["rows"], case["vocab"], generator=generator).mul_(4).round_()
    if case["vocab"] > 2:
        logits[:, 1] = float("-inf")
    return {"logits_SV": logits.to(dtype), "first_id": case["first_id"]}


def _cost(case: Case, dtype: torch.dtype) -> Cost:
    elements = case["rows"] * case["vocab"]
    return Cost(elements * dtype.itemsize + 12 * case["rows"], elements)


OP = Op(
    name="highest",
    function=highest,
    reference=highest_reference,
    make_inputs=_make_inputs,
    cases=(
        {"rows": 0, "vocab": 8, "first_id": 0},
        {"rows": 1, "vocab": 1, "first_id": 3},
        {"rows": 3, "vocab": 777, "first_id": 0},
        {"rows": 2, "vocab": 9001, "first_id": 2**31},
        {"rows": 40, "vocab": 130, "first_id": 7},
    ),
    tolerance=dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), EXACT),
    cost=_cost,
    door=Door(highest, _fake),
    bench={
        f"{model.name}, {rows} rows": Bench(
            case={"rows": rows, "vocab": model.vocab, "first_id": 0}
        )
        for model in (*SMALL, LLAMA_8B)
        for rows in (1, 64)
    },
)
