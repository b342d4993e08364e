"""Sampling from a vocabulary cut over ranks: the same tokens on all, and those of one rank."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from seesaw.engine.sampler import SamplingState, draw
from seesaw.layout.ranges import vocab_range
from seesaw.plan import sampling_workspace
from seesaw.sampling_params import SamplingParams
from seesaw.scheduler.output import NewRequest, TokenLogprobs
from tests.models.ranks import run_ranks, stage_comms

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "greedy-logprobs": {"temperature": 0, "logprobs": 3},
    "greedy-penalty": {"temperature": 0, "repetition_penalty": 1.7},
    "greedy-presence": {"temperature": 0, "presence_penalty": 1.9},  # as plain at first
    "greedy-bias": {"temperature": 0, "logit_bias": {0: 100}},
    "greedy-min-tokens": {"temperature": 0, "min_tokens": 3, "stop_token_ids": [5, 2]},
    "random": {"temperature": 1.3},
    "filtered": {"temperature": 0.8, "top_k": 5, "top_p": 0.9, "min_p": 0.01},
    "presence": {"temperature": 1.0, "presence_penalty": 1.5, "logprobs": 2},
}

Drawn = tuple[list[int], list[TokenLogprobs | None] | None]


def make_state(row: int, kind: str) -> SamplingState:
    params = SamplingParams(max_tokens=9, **KINDS[kind])
    return SamplingState(NewRequest(str(row), [1, 2, 3], params, 77 * row, (2,)))


def draw_steps(kinds: list[str], logits: list[torch.Tensor], num_ranks: int) -> list[list[Drawn]]:
    """Per rank what it drew in each step; states live over the steps, each rank has its own."""
    vocab_size = logits[0].shape[1]
    comms = stage_comms(num_ranks)

    def run(rank: int) -> list[Drawn]:
        states = [make_state(row, kind) for row, kind in enumerate(kinds)]
        columns = slice(*vocab_range(vocab_size, num_ranks, rank))
        return [draw(x[:, columns].contiguous(), states, comms[rank], vocab_size) for x in logits]

    return run_ranks(comms, run)


def random_logits(num_rows: int, vocab_size: int, num_steps: int) -> list[torch.Tensor]:
    """bf16 values, so that equals are common."""
    seed = random.randrange(2**31)
    print(f"seed={seed}")  # shown by pytest where a test fails
    generator = torch.Generator().manual_seed(seed)
    shape = (num_steps, num_rows, vocab_size)
    return list((torch.randn(shape, generator=generator) * 2).bfloat16().float())


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
@pytest.mark.parametrize("kinds", [*([kind] * 3 for kind in KINDS), [*KINDS] * 2], ids="-".join)
def test_ranks_draw_what_one_rank_draws(
    kinds: list[str], num_ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling_workspace, "SAMPLE_BYTES", 40 * 101 * 5)  # 5 rows at once
    kinds = random.sample(kinds, len(kinds))
    logits = random_logits(len(kinds), 101, 5)
    (alone,) = draw_steps(kinds, logits, 1)
    for drawn in draw_steps(kinds, logits, num_ranks):
        assert drawn == alone


@pytest.mark.parametrize("kind", ["greedy", "greedy-logprobs"])
def test_the_lowest_id_of_equals_wins_wherever_they_lie(kind: str) -> None:
    logits = torch.zeros(4, 10)
    logits[0, [3, 4, 9]] = 2.0  # 10 ids on 3 ranks: 0-3, 4-6, 7-9
    logits[1, [6, 7]] = 2.0
    logits[2] = float("-inf")
    logits[2, 8] = -1e30
    for tokens, _ in (steps[0] for steps in draw_steps([kind] * 4, [logits], 3)):
        assert tokens == [3, 6, 8, 0]


def test_large_ids_survive_the_message() -> None:
    vocab_size = 2**24 + 5  # float32 holds no odd id beyond 2**24
    logits = torch.zeros(1, vocab_size)
    logits[0, 2**24 + 3] = 1.0
    for steps in draw_steps(["greedy"], [logits], 2):
        assert steps[0][0] == [2**24 + 3]


def test_no_rows_draw_nothing() -> None:
    assert draw_steps([], [torch.zeros(0, 7)], 2) == [[([], None)]] * 2
