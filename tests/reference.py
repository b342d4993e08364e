"""What transformers answers, and the rule by which our ids are compared with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

NEAR_TIE = 1e-3
"""Where the reference's two best logits are closer than this, either token is right."""


@dataclass
class Greedy:
    """A greedy answer with, at each position, the gap between the two best logits."""

    token_ids: list[int]
    gaps: list[float]


@torch.inference_mode()
def greedy(model: Any, prompt: list[int], answer: list[int]) -> Greedy:
    """The greedy answer of a transformers model, as far as it is needed to judge `answer`.

    One pass over prompt and answer gives the reference's token at each position after the same
    beginning; from the first difference on, what follows is meaningless and left out.
    """
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    best = logits.float().topk(2, dim=-1)
    found = Greedy([], [])
    for ours, ids, values in zip(answer, best.indices.tolist(), best.values.tolist(), strict=True):
        found.token_ids.append(ids[0])
        found.gaps.append(values[0] - values[1])
        if ids[0] != ours:
            break
    return found


def count_near_ties(got: list[list[int]], expected: list[Greedy]) -> int:
    """Answers that part from the reference at a near-tie. AssertionError if one parts elsewhere."""
    ties = 0
    for index, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
        if ours == theirs.token_ids:
            continue
        pairs = enumerate(zip(ours, theirs.token_ids, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), None)
        assert at is not None, f"prompt {index}: {len(ours)} of {len(theirs.gaps)} tokens"
        assert theirs.gaps[at] < NEAR_TIE, (
            f"prompt {index}, token {at}: got {ours[at]}, expected {theirs.token_ids[at]}, "
            f"and the two best logits are {theirs.gaps[at]:.4f} apart"
        )
        ties += 1
    return ties
