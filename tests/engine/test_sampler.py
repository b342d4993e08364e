"""Draws that are begun before those before them are finished, on all backends."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from seesaw.engine.sampler import SamplingState, begin_draw, draw
from seesaw.hostmem.upload import upload
from seesaw.ops import triton_backend
from seesaw.ops.native import native
from seesaw.sampling_params import SamplingParams
from seesaw.scheduler.output import NewRequest

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "random": {"temperature": 1.3},
    "filtered": {"temperature": 0.8, "top_k": 5, "top_p": 0.9, "min_p": 0.01},
    "greedy-logprobs": {"temperature": 0, "logprobs": 3},
    "bias": {"temperature": 0.7, "logit_bias": {0: 4.0, 9: -3.0}, "logprobs": 0},
    "min-tokens": {"temperature": 0, "min_tokens": 2, "stop_token_ids": [5, 2]},
}
PENALTIES: dict[str, dict[str, Any]] = {
    "repetition": {"temperature": 0, "repetition_penalty": 1.7},
    "presence": {"temperature": 1.0, "presence_penalty": 1.5, "logprobs": 2},
}
STEPS = 3


@pytest.fixture(params=["auto", "torch", "triton"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    def forget() -> None:
        native.cache_clear()
        triton_backend.runs_on.cache_clear()

    monkeypatch.setenv("SEESAW_KERNELS", request.param)
    forget()
    yield request.param
    monkeypatch.undo()
    forget()


def make_states(kinds: dict[str, dict[str, Any]]) -> list[SamplingState]:
    return [
        SamplingState(NewRequest(kind, [1, 2, 3], SamplingParams(max_tokens=9, **given), row, (2,)))
        for row, (kind, given) in enumerate(kinds.items())
    ]


def random_logits(num_rows: int) -> list[torch.Tensor]:
    seed = random.randrange(2**31)
    print(f"seed={seed}")  # shown by pytest where a test fails
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(STEPS, num_rows, 23, generator=generator) * 2)


def test_draws_begun_ahead_are_those_drawn_in_turn(backend: str) -> None:
    logits = random_logits(len(KINDS))
    logits[0][-1, 5] = logits[1][-1, 2] = 50.0  # what min_tokens forbids
    states = make_states(KINDS)
    in_turn = [draw(x, states) for x in logits]
    assert all(tokens[-1] not in (5, 2) for tokens, _ in in_turn[:2])
    states = make_states(KINDS)
    pending = []
    for x in logits:
        there = x.clone()
        pending.append(begin_draw(there, states))
        there.fill_(float("nan"))  # as where the next step writes its logits
    ids = [one.ids_S.clone() for one in pending]
    for one in pending:
        one.ids_S.fill_(-1)  # as where they lie in a buffer of all steps
    ahead = [one.finish() for one in pending]
    assert ahead == in_turn
    assert [one.tolist() for one in ids] == [tokens for tokens, _ in ahead]
    assert [entry is None for entry in ahead[0][1] or []] == [True, True, True, False, False, True]


def test_backends_draw_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = random_logits(len(KINDS) + len(PENALTIES))
    drawn = []
    for asked in ("torch", "triton"):
        monkeypatch.setenv("SEESAW_KERNELS", asked)
        native.cache_clear()
        triton_backend.runs_on.cache_clear()
        states = make_states(KINDS | PENALTIES)
        drawn.append([draw(x, states)[0] for x in logits])
    monkeypatch.undo()
    native.cache_clear()
    triton_backend.runs_on.cache_clear()
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("kind", PENALTIES)
def test_penalties_wait_for_tokens(kind: str) -> None:
    (state,) = make_states({kind: PENALTIES[kind]})
    assert state.needs_known_tokens
    first = begin_draw(torch.zeros(1, 7), [state])
    with pytest.raises(AssertionError, match="penalties need 1 drawn tokens, 0 are known"):
        begin_draw(torch.zeros(1, 7), [state])
    ((token,), _) = first.finish()
    adjustment = state.adjustment(0)
    assert adjustment is not None
    assert adjustment.counts[token] == 1


def test_without_penalties_nothing_waits() -> None:
    assert not any(state.needs_known_tokens for state in make_states(KINDS))


def test_uploads_keep_values_and_types() -> None:
    columns = upload(
        torch.device("cpu"),
        ("i", [-1, 2, 3]),
        ("d", [0.1]),
        ("f", []),
        ("q", [2**40]),
        ("f", [0.5]),
    )
    assert [one.tolist() for one in columns] == [[-1, 2, 3], [0.1], [], [2**40], [0.5]]
    assert [one.dtype for one in columns] == [
        torch.int32, torch.float64, torch.float32, torch.int64, torch.float32,
    ]  # fmt: skip
    assert all(one.data_ptr() % 16 == columns[0].data_ptr() % 16 for one in columns if len(one))
    assert [len(one) for one in upload(torch.device("cpu"), ("f", []), ("q", []))] == [0, 0]
