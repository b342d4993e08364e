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
def greedy(model: Any, prompt: list[int], num_tokens: int, eos: tuple[int, ...] = ()) -> Greedy:
    """`num_tokens` tokens of a transformers model, one at a time, ending early after one of
    `eos`."""
    ids, cache, answer = torch.tensor([prompt]), None, Greedy([], [])
    for _ in range(num_tokens):
        out = model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        best = out.logits[0, -1].float().topk(2)
        answer.token_ids.append(int(best.indices[0]))
        answer.gaps.append(float(best.values[0] - best.values[1]))
        if answer.token_ids[-1] in eos:
            break
        ids = torch.tensor([[answer.token_ids[-1]]])
    return answer


def count_near_ties(got: list[list[int]], expected: list[Greedy]) -> int:
    """Answers that part from the reference at a near-tie. AssertionError if one parts elsewhere."""
    ties = 0
    for index, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
        if ours == theirs.token_ids:
            continue
        at = next(
            (i for i, (a, b) in enumerate(zip(ours, theirs.token_ids, strict=False)) if a != b),
            min(len(ours), len(theirs.token_ids)),
        )
        assert at < len(theirs.gaps), f"prompt {index}: {len(ours)} tokens"
        assert theirs.gaps[at] < NEAR_TIE, (
            f"prompt {index}, token {at}: got {ours[at : at + 1]}, expected {theirs.token_ids[at]}, "
            f"and the two best logits are {theirs.gaps[at]:.4f} apart"
        )
        ties += 1
    return ties
