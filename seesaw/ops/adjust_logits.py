"""Bans, biases and penalties on the logits of the rows that ask for them.

In this order, as in vLLM: banned tokens to -inf; bias added; repetition penalty (CTRL, Keskar et
al. 2019: positive logits divided, others multiplied, for tokens of prompt and answer); frequency
penalty times count and presence penalty subtracted for tokens of the answer (OpenAI). Bytes: one
copy of the logits, if any row asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from seesaw.ops.registry import EXACT, Bench, Case, Cost, Door, Op
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


def _door(
    logits_SV: torch.Tensor,
    rows: Sequence[int],
    repetition: Sequence[float],
    frequency: Sequence[float],
    presence: Sequence[float],
    owners: Sequence[int],
    tokens: Sequence[int],
    biases: Sequence[float],
    counts: Sequence[int],
) -> torch.Tensor:
    """Entry i is of adjustment `owners[i]` and token `tokens[i]`: adds `biases[i]` (-inf bans it),
    and penalises it where `counts[i]` is not -1."""
    bias: list[dict[int, float]] = [{} for _ in rows]
    counted: list[dict[int, int]] = [{} for _ in rows]
    for owner, token, value, count in zip(owners, tokens, biases, counts, strict=True):
        bias[owner][token] = value
        if count >= 0:
            counted[owner][token] = count
    columns = zip(rows, bias, counted, repetition, frequency, presence, strict=True)
    made = [RowAdjustment(row, (), *rest) for row, *rest in columns]
    return adjust_logits(logits_SV, made) if made else logits_SV.clone()


def _door_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    adjustments: Sequence[RowAdjustment] = inputs["adjustments"]
    entries: list[tuple[int, int, float, int]] = []
    for owner, a in enumerate(adjustments):
        biases = {**a.bias, **dict.fromkeys(a.banned, float("-inf"))}
        for token in dict.fromkeys([*biases, *a.counts]):
            entries.append((owner, token, biases.get(token, 0.0), a.counts.get(token, -1)))
    owners, tokens, added, counts = map(list, zip(*entries, strict=True)) if entries else ([],) * 4
    return {
        "logits_SV": inputs["logits_SV"],
        "rows": [a.row for a in adjustments],
        "repetition": [a.repetition_penalty for a in adjustments],
        "frequency": [a.frequency_penalty for a in adjustments],
        "presence": [a.presence_penalty for a in adjustments],
        "owners": owners,
        "tokens": tokens,
        "biases": added,
        "counts": counts,
    }


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
    door=Door(_door, lambda x, *_: x.new_empty(x.shape), _door_inputs),
    bench={
        f"{model.name}, {rows} rows": Bench(
            case={"rows": rows, "vocab": model.vocab, "every": 1}, dtype=torch.float32
        )
        for model in (SMOLLM2_135M, LLAMA_8B)
        for rows in (1, 64)
    },
)
