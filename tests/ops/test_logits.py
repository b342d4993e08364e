"""Penalties, biases, bans and log-probabilities on hand-made logits."""

from __future__ import annotations

import math

import pytest
import torch

from seesaw.ops import RowAdjustment, adjust_logits, logprobs


@pytest.fixture(params=["kernels", "torch"], autouse=True)
def backend(request: pytest.FixtureRequest) -> None:
    """Each test with the C++ kernels, where they are built, and in plain torch."""
    if request.param == "torch":
        request.getfixturevalue("plain_torch")


def test_no_adjustment_returns_the_same_tensor() -> None:
    logits = torch.randn(3, 5)
    assert adjust_logits(logits, []) is logits


def test_input_and_other_rows_stay() -> None:
    logits = torch.randn(4, 6)
    before = logits.clone()
    out = adjust_logits(logits, [RowAdjustment(2, bias={1: 3.0})])
    assert torch.equal(logits, before)
    assert torch.equal(out[[0, 1, 3]], before[[0, 1, 3]])
    assert out[2, 1] == before[2, 1] + 3.0


def test_each_penalty_as_defined() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.5, 4.0]])

    def adjusted(**settings: float) -> list[float]:
        row = RowAdjustment(0, counts={0: 0, 1: 2, 2: 1}, **settings)
        return adjust_logits(logits, [row])[0].tolist()

    # prompt (0) and answer (1, 2) tokens; positive divided, negative multiplied
    assert adjusted(repetition_penalty=2.0) == [1.0, -4.0, 0.5, 0.5, 4.0]
    # answer tokens only
    assert adjusted(frequency_penalty=0.5) == [2.0, -3.0, 0.5, 0.5, 4.0]
    assert adjusted(presence_penalty=0.5) == [2.0, -2.5, 0.5, 0.5, 4.0]
    everything = adjusted(repetition_penalty=2.0, frequency_penalty=0.5, presence_penalty=1.0)
    assert everything == [1.0, -6.0, -1.0, 0.5, 4.0]


def test_bias_comes_before_the_repetition_penalty() -> None:
    logits = torch.tensor([[1.0, 0.0]])
    row = RowAdjustment(0, bias={0: -3.0}, counts={0: 1}, repetition_penalty=2.0)
    assert adjust_logits(logits, [row])[0, 0] == -4.0


@pytest.mark.parametrize("bias", [{}, {1: 100.0}])
def test_banned_tokens_stay_banned(bias: dict[int, float]) -> None:
    row = RowAdjustment(
        0, banned=[1], bias=bias, counts={1: 1}, repetition_penalty=1.5, presence_penalty=-2.0
    )
    out = adjust_logits(torch.tensor([[0.0, 5.0, 1.0]]), [row])
    assert out[0].tolist() == [0.0, -math.inf, 1.0]


def test_logprobs_of_known_probabilities() -> None:
    probabilities = torch.tensor([[0.1, 0.6, 0.1, 0.2], [0.25, 0.25, 0.25, 0.25]])
    sampled, rank, ids, top = logprobs(probabilities.log() + 7.0, torch.tensor([2, 3]), 3)
    torch.testing.assert_close(sampled.exp(), torch.tensor([0.1, 0.25]))
    assert rank.tolist() == [3, 1]  # equals share a rank
    assert ids.tolist() == [[1, 3, 0], [0, 1, 2]]  # equals by id
    torch.testing.assert_close(top.exp(), torch.tensor([[0.6, 0.2, 0.1], [0.25, 0.25, 0.25]]))


def test_logprobs_sum_to_one_over_the_vocabulary() -> None:
    logits = torch.randn(5, 333) * 10
    _, _, ids, top = logprobs(logits, torch.zeros(5, dtype=torch.int64), 1000)
    assert ids.shape == (5, 333)
    torch.testing.assert_close(top.exp().sum(-1), torch.ones(5))


def test_logprobs_of_tokens_far_apart() -> None:
    """Ranks and order hold where probabilities are 0, and among logits that differ by a bit."""
    logits = torch.tensor([[-math.inf, -900.0, 80.0, 80.00001, -0.0, 0.0, -901.0, -math.inf]])
    sampled, rank, ids, top = logprobs(logits, torch.tensor([1]), 8)
    assert ids.tolist() == [[3, 2, 4, 5, 1, 6, 0, 7]]
    assert rank.tolist() == [5]
    assert sampled.tolist() == [top[0, 4].item()]
    torch.testing.assert_close(top[0, [2, 4]], torch.tensor([-80.69, -980.69]), atol=0.01, rtol=0)
    assert top[0, 6:].tolist() == [-math.inf] * 2


def test_a_token_past_the_vocabulary_is_refused() -> None:
    for token in (-9, 9):
        with pytest.raises((IndexError, RuntimeError), match="9"):
            logprobs(torch.zeros(1, 9), torch.tensor([token]), 0)


def test_ids_of_tokens_may_be_of_any_integer_type() -> None:
    logits = torch.randn(5, 40)
    tokens = torch.randint(40, (5,))
    for one, other in zip(
        logprobs(logits, tokens, 3), logprobs(logits, tokens.int(), 3), strict=True
    ):
        assert torch.equal(one, other)
