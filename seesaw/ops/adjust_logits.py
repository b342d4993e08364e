"""Bans, biases and penalties on the logits of the rows that ask for them.

In this order, as in vLLM: banned tokens to -inf; bias added; repetition penalty (CTRL, Keskar et
al. 2019: positive logits divided, others multiplied, for tokens of prompt and answer); frequency
penalty times count and presence penalty subtracted for tokens of the answer (OpenAI). Bytes: one
copy of the logits, if any row asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from seesaw.ops.registry import EXACT, Bench, Case, Cost, Op
from seesaw.ops.shapes import LLAMA_8B, SMOLLM2_135M
from seesaw.ops.triton_backend import on_triton

# Shape letters: S rows, V vocabulary, M (row, token) pairs.


@dataclass(frozen=True, slots=True)
class RowAdjustment:
    """What one row of the logits asks for. All ids are below V.

    row     index in S; at most one adjustment per row
    banned  ids that cannot be drawn
    bias    id -> what is added
    counts  id -> times it stands in the answer so far, 0 if only in the prompt
    """

    row: int
    banned: Sequence[int] = ()
    bias: Mapping[int, float] = field(default_factory=dict)
    counts: Mapping[int, int] = field(default_factory=dict)
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0


def adjust_logits(logits_SV: torch.Tensor, adjustments: Sequence[RowAdjustment]) -> torch.Tensor:
    """`logits_SV` (float32) with the adjustments: itself if there are none, else a new tensor."""
    if not adjustments:
        return logits_SV
    if on_triton(logits_SV):
        from seesaw.kernels.adjust_logits import adjust_logits as launch

        return launch(logits_SV, adjustments)
    out_SV = logits_SV.clone()
    flat = out_SV.view(-1)
    vocab = logits_SV.shape[1]
    places = [a.row * vocab + token for a in adjustments for token in a.banned]
    if places:
        flat[torch.tensor(places, device=flat.device)] = float("-inf")
    places = [a.row * vocab + token for a in adjustments for token in a.bias]
    if places:
        bias = [value for a in adjustments for value in a.bias.values()]
        flat[torch.tensor(places, device=flat.device)] += flat.new_tensor(bias)
    _penalise(flat, vocab, [a for a in adjustments if a.counts and _penalises(a)])
    return out_SV


def _penalises(a: RowAdjustment) -> bool:
    return (a.repetition_penalty, a.frequency_penalty, a.presence_penalty) != (1.0, 0.0, 0.0)


def _penalise(flat: torch.Tensor, vocab: int, adjustments: Sequence[RowAdjustment]) -> None:
    """Penalties of all rows at once, in place on the flattened logits."""
    if not adjustments:
        return
    device = flat.device
    sizes = torch.tensor([len(a.counts) for a in adjustments], device=device)

    def per_token(values: list[float]) -> torch.Tensor:
        return flat.new_tensor(values).repeat_interleave(sizes)

    ids_M = torch.tensor([token for a in adjustments for token in a.counts], device=device)
    rows = torch.tensor([a.row for a in adjustments], device=device)
    ids_M += rows.repeat_interleave(sizes) * vocab
    counts_M = flat.new_tensor([n for a in adjustments for n in a.counts.values()])
    repetition_M = per_token([a.repetition_penalty for a in adjustments])
    logits_M = flat[ids_M]
    logits_M = torch.where(logits_M > 0, logits_M / repetition_M, logits_M * repetition_M)
    logits_M -= per_token([a.frequency_penalty for a in adjustments]) * counts_M
    logits_M -= per_token([a.presence_penalty for a in adjustments]) * (counts_M > 0)
    flat[ids_M] = logits_M


def adjust_logits_reference(
    logits_SV: torch.Tensor, adjustments: Sequence[RowAdjustment]
) -> torch.Tensor:
    out = logits_SV.clone()
    for a in adjustments:
        row = out[a.row]
        for token in a.banned:
            row[token] = float("-inf")
        for token, value in a.bias.items():
            row[token] += value
        for token, count in a.counts.items():
            penalty = a.repetition_penalty
            row[token] = row[token] / penalty if row[token] > 0 else row[token] * penalty
            row[token] -= a.frequency_penalty * count
            row[token] -= a.presence_penalty * (count > 0)
    return out


def _make_inputs(generator: torch.Generator, case: Case, dtype: torch.dtype) -> dict[str, object]:
    rows, vocab = case["rows"], case["vocab"]

    def ids(most: int) -> list[int]:
        count = int(torch.randint(min(most, vocab) + 1, (1,), generator=generator))
        return torch.randperm(vocab, generator=generator)[:count].tolist()

    def number(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand(1, generator=generator))

    adjustments = [
        RowAdjustment(
            row,
            banned=ids(3),
            bias={token: number(-9, 9) for token in ids(4)},
            counts={token: int(number(0, 5)) for token in ids(30)},
            repetition_penalty=number(0.5, 2.0),
            frequency_penalty=number(-2, 2),
            presence_penalty=number(-2, 2),
        )
        for row in range(0, rows, case["every"])
    ]
    logits = torch.randn(rows, vocab, generator=generator) * 4
    return {"logits_SV": logits.to(dtype), "adjustments": adjustments}


def _cost(case: Case, dtype: torch.dtype) -> Cost:
    return Cost(2 * case["rows"] * case["vocab"] * dtype.itemsize, 0)


OP = Op(
    name="adjust_logits",
    function=adjust_logits,
    reference=adjust_logits_reference,
    make_inputs=_make_inputs,
    cases=(
        {"rows": 0, "vocab": 5, "every": 1},
        {"rows": 1, "vocab": 1, "every": 1},
        {"rows": 9, "vocab": 40, "every": 2},
        {"rows": 16, "vocab": 1000, "every": 1},
    ),
    tolerance={torch.float32: EXACT._replace(atol=1e-5, rtol=1e-6)},
    cost=_cost,
    bench={
        f"{model.name}, {rows} rows": Bench(
            case={"rows": rows, "vocab": model.vocab, "every": 1}, dtype=torch.float32
        )
        for model in (SMOLLM2_135M, LLAMA_8B)
        for rows in (1, 64)
    },
)
