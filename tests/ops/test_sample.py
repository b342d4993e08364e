"""Sampling: filters against a plain reference, the distribution, independence, edge cases."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch

from seesaw.ops import sample, uniform
from seesaw.ops.top_tokens import top_tokens
from seesaw.plan import sampling_workspace


@pytest.fixture(params=["kernels", "torch"], autouse=True)
def backend(request: pytest.FixtureRequest) -> None:
    """Each test with the C++ kernels, where they are built, and in plain torch."""
    if request.param == "torch":
        request.getfixturevalue("plain_torch")


def draw(logits: torch.Tensor, uniforms: Any, **settings: Any) -> list[int]:
    """Token ids of rows that share settings; `logits` [V] is repeated for each uniform number."""
    rows = len(uniforms)
    values = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **settings}
    return sample(
        logits.expand(rows, -1),
        temperature_S=torch.full((rows,), values["temperature"]),
        top_k_S=torch.full((rows,), values["top_k"]),
        top_p_S=torch.full((rows,), values["top_p"]),
        min_p_S=torch.full((rows,), values["min_p"]),
        uniform_S=torch.as_tensor(uniforms, dtype=torch.float64),
    ).tolist()


def expected_distribution(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> list[float]:
    """Probabilities after the filters, by lists in plain Python."""
    x = [v / temperature for v in logits.tolist()]
    weights = [math.exp(v - max(x)) for v in x]
    order = sorted(range(len(x)), key=lambda i: (-x[i], i))
    order = [i for i in order if weights[i] >= min_p]
    if top_k:
        order = order[:top_k]
    total, kept = 0.0, []
    everything = sum(weights[i] for i in order)
    for i in order:
        if kept and top_p < 1 and total >= top_p * everything:
            break
        kept.append(i)
        total += weights[i]
    return [weights[i] / total if i in kept else 0.0 for i in range(len(x))]


SETTINGS = [
    (1.0, 0, 1.0, 0.0),
    (0.5, 0, 1.0, 0.0),
    (3.0, 0, 1.0, 0.1),
    (1.0, 5, 1.0, 0.0),
    (1.0, 1, 1.0, 0.0),
    (1.0, 0, 0.6, 0.0),
    (0.7, 20, 0.9, 0.02),
    (1.0, 0, 0.9, 0.05),
    (1.0, 1000, 0.999, 0.0),
]


@pytest.mark.parametrize(("temperature", "top_k", "top_p", "min_p"), SETTINGS)
@pytest.mark.parametrize("vocab", [3, 300])
def test_uniform_grid_gives_the_distribution(
    vocab: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """An evenly spaced grid of n draws hits each token n * p times, give or take one."""
    logits = (torch.randn(vocab) * 2).bfloat16().float()  # with equals among them
    n = 4001
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    tokens = draw(logits, grid, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    counts = torch.bincount(torch.tensor(tokens), minlength=vocab).tolist()
    expected = expected_distribution(logits, temperature, top_k, top_p, min_p)
    for token, (count, probability) in enumerate(zip(counts, expected, strict=True)):
        assert abs(count - n * probability) < 1.01, f"token {token}"


def test_stream_is_uniform() -> None:
    """Chi-square over 50 cells of 20,000 draws, of consecutive positions, seeds and both."""
    for draws in (
        [uniform(7, position) for position in range(20_000)],
        [uniform(seed, 3) for seed in range(20_000)],
        [uniform(seed, seed) for seed in range(20_000)],
    ):
        cells = [0] * 50
        for value in draws:
            assert 0.0 <= value < 1.0
            cells[int(value * 50)] += 1
        chi2 = sum((count - 400) ** 2 / 400 for count in cells)
        assert 15 < chi2 < 110  # 49 degrees of freedom: 1e-6 on either side


def test_stream_depends_on_seed_and_position_alone() -> None:
    pairs = [(seed, position) for seed in (-1, 0, 1, 2**64 - 2) for position in (0, 1, 10**9)]
    values = [uniform(*pair) for pair in pairs]
    assert values == [uniform(*pair) for pair in pairs]
    assert len(set(values)) == len(values)


def test_neighbouring_streams_are_not_shifted_copies() -> None:
    one = [uniform(5, position) for position in range(100)]
    other = [uniform(6, position) for position in range(100)]
    assert not set(one) & set(other)


def test_a_row_does_not_depend_on_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, vocab = 60, 3000
    logits = torch.randn(rows, vocab) * random.choice((0.3, 3))
    settings: dict[str, torch.Tensor] = {
        "temperature_S": torch.tensor(random.choices((0.0, 0.5, 1.5), k=rows)),
        "top_k_S": torch.tensor(random.choices((0, 1, 40, 2999), k=rows)),
        "top_p_S": torch.tensor(random.choices((1.0, 0.3, 0.99), k=rows)),
        "min_p_S": torch.tensor(random.choices((0.0, 0.2), k=rows)),
        "uniform_S": torch.rand(rows, dtype=torch.float64),
    }
    together = sample(logits, **settings)
    monkeypatch.setattr(sampling_workspace, "SAMPLE_BYTES", vocab * 40 * 7)
    assert torch.equal(sample(logits, **settings), together)
    for row in range(rows):
        one = {name: value[row : row + 1] for name, value in settings.items()}
        assert sample(logits[row : row + 1], **one).item() == together[row], f"row {row}"


def test_ends_of_the_uniform_range() -> None:
    logits = torch.tensor([-math.inf, 0.0, 1.0, -math.inf, 2.0, -math.inf])
    ends = [0.0, math.nextafter(1.0, 0.0)]
    assert draw(logits, ends) == [1, 4]  # by id
    assert draw(logits, ends, top_k=2) == [4, 2]  # by probability
    assert draw(logits, ends, top_k=5) == [4, 1]
    assert draw(logits, ends, top_p=0.9999999) == [4, 1]


def test_greedy_takes_the_first_of_equals() -> None:
    logits = torch.zeros(1000)
    logits[[700, 31, 223, 200]] = 2.5
    assert draw(logits, [0.9], temperature=0.0) == [31]
    assert draw(logits, [0.9], top_k=1) == [31]


def test_top_k_keeps_exactly_k_of_equals() -> None:
    logits = torch.zeros(500)
    grid = torch.linspace(0, 0.999, 300, dtype=torch.float64)
    assert set(draw(logits, grid, top_k=4)) == {0, 1, 2, 3}


def test_top_p_keeps_at_least_one_token() -> None:
    logits = torch.tensor([0.0, 3.0, 1.0])
    assert set(draw(logits, [0.0, 0.5, 0.999], top_p=1e-9)) == {1}


def test_min_p_of_one_keeps_the_most_probable() -> None:
    logits = torch.tensor([0.5, 3.0, 3.0, 1.0])
    grid = torch.linspace(0, 0.999, 50, dtype=torch.float64)
    assert set(draw(logits, grid, min_p=1.0)) == {1, 2}


def test_flat_distribution_beyond_the_first_candidates() -> None:
    """top_p that needs more tokens than are looked at first."""
    logits = torch.randn(20_000) * 1e-3
    grid = (torch.arange(500, dtype=torch.float64) + 0.5) / 500
    tokens = draw(logits, grid, top_p=0.9)
    order = logits.argsort(descending=True)
    rank = {token: place for place, token in enumerate(order.tolist())}
    ranks = [rank[token] for token in tokens]
    assert ranks == sorted(ranks)
    assert 17_900 < max(ranks) < 18_100


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.9}, {"temperature": 0.0}])
def test_every_token_but_one_impossible(settings: dict[str, Any]) -> None:
    logits = torch.full((700,), -math.inf)
    logits[513] = -3.0
    assert set(draw(logits, [0.0, 0.5, 0.999], **settings)) == {513}


def test_tokens_of_no_weight_are_never_drawn() -> None:
    """e^-87 and less of the most probable one is nothing in float32; top_k may still count it."""
    logits = torch.tensor([-200.0, 0.0, -110.0, 1.0, -500.0])
    ends = [0.0, 0.3, 0.9, math.nextafter(1.0, 0.0)]
    for settings in ({}, {"top_k": 4}, {"top_p": 0.999999}, {"top_k": 3, "top_p": 0.9999}):
        assert set(draw(logits, ends, **settings)) == {1, 3}


def test_top_tokens_with_all_equal_and_few_finite() -> None:
    x = torch.full((3, 50), -math.inf)
    x[0] = 1.0
    x[1, 40:] = torch.arange(10.0)
    x[2, 7] = 0.0
    values, ids = top_tokens(x, torch.tensor([3, 12, 1]))
    assert values.shape == ids.shape == (3, 12)
    assert ids[0, :3].tolist() == [0, 1, 2]
    assert ids[1, :10].tolist() == list(range(49, 39, -1))
    assert values[1, 10:].tolist() == [-math.inf] * 2
    assert ids[2, 0] == 7
    assert values[2, 1:].max() == -math.inf
