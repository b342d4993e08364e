"""Kernels of sampling beyond the ops' cases: draws against the reference at random and extreme
numbers, ties, rows that cannot be drawn from, all cuts of the work, no wait for the device."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import seesaw.kernels.highest as highest_file
import seesaw.kernels.sample as sample_file
from seesaw.errors import UnsupportedError
from seesaw.kernels.adjust_logits import adjust_logits
from seesaw.kernels.highest import highest
from seesaw.kernels.logprobs import logprobs
from seesaw.kernels.sample import sample
from seesaw.ops import RowAdjustment
from seesaw.ops.adjust_logits import adjust_logits_reference
from seesaw.ops.logprobs import logprobs_reference
from seesaw.ops.sample import sample_reference

LAST = math.nextafter(1.0, 0.0)
NEAR = 1e-6
"""How far a random number may be from the bound between two tokens for either to be right."""


@pytest.fixture
def generator() -> torch.Generator:
    seed = random.randrange(2**31)
    print(f"seed={seed}")  # shown by pytest where a test fails
    return torch.Generator().manual_seed(seed)


def settings_of(rows: int, uniforms: Any, **given: float) -> dict[str, torch.Tensor]:
    values = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **given}
    return {
        "temperature_S": torch.full((rows,), values["temperature"]),
        "top_k_S": torch.full((rows,), int(values["top_k"])),
        "top_p_S": torch.full((rows,), values["top_p"]),
        "min_p_S": torch.full((rows,), values["min_p"]),
        "uniform_S": torch.as_tensor(uniforms, dtype=torch.float64),
    }


def launch(logits: torch.Tensor, settings: dict[str, torch.Tensor], device: str) -> list[int]:
    on_device = {name: value.to(device) for name, value in settings.items()}
    return sample(logits.to(device), **on_device).tolist()


def draw(logits: torch.Tensor, uniforms: list[float], device: str, **given: float) -> list[int]:
    """One row of logits, with each of the random numbers."""
    settings = settings_of(len(uniforms), uniforms, **given)
    return launch(logits.expand(len(uniforms), -1), settings, device)


def assert_reference(
    logits: torch.Tensor, settings: dict[str, torch.Tensor], device: str
) -> list[int]:
    """The reference's tokens, or those of random numbers next to these."""
    tokens = launch(logits, settings, device)
    around = [
        sample_reference(
            logits, **{**settings, "uniform_S": (settings["uniform_S"] + by).clamp(0, LAST)}
        ).tolist()
        for by in (0.0, -NEAR, NEAR)
    ]
    for row, token in enumerate(tokens):
        assert token in {one[row] for one in around}, f"row {row}: {token}, expected {around}"
    return tokens


FILTERS = [
    {},
    {"temperature": 3.0, "min_p": 0.1},
    {"top_k": 1},
    {"top_k": 40, "temperature": 0.6},
    {"top_p": 0.6},
    {"top_p": 1e-9},
    {"top_k": 20, "top_p": 0.9, "min_p": 0.02},
    {"top_k": 300, "top_p": 0.999},
    {"top_k": 50, "min_p": 0.3},
]


@pytest.mark.parametrize("given", FILTERS, ids=str)
@pytest.mark.parametrize("candidates", [sample_file.MAX_CANDIDATES, 2])
def test_draws_are_those_of_the_reference(
    given: dict[str, float],
    candidates: int,
    generator: torch.Generator,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """bf16 values, so that there are equals. With room for 2 candidates all tokens are searched."""
    monkeypatch.setattr(sample_file, "MAX_CANDIDATES", candidates)
    rows = 5
    logits = (torch.randn(rows, 301, generator=generator) * 2).bfloat16().float()
    uniforms = torch.rand(rows, generator=generator, dtype=torch.float64)
    uniforms[:2] = torch.tensor([0.0, LAST])
    assert_reference(logits, settings_of(rows, uniforms, **given), device)


@pytest.mark.parametrize("given", [{"top_p": 0.9}, {"top_k": 1500}, {}], ids=str)
def test_flat_rows_over_several_blocks(
    given: dict[str, float], generator: torch.Generator, device: str
) -> None:
    logits = torch.randn(3, 5003, generator=generator) * 1e-3
    uniforms = torch.rand(3, generator=generator, dtype=torch.float64)
    assert_reference(logits, settings_of(3, uniforms, **given), device)


def test_ends_of_the_uniform_range(device: str) -> None:
    logits = torch.tensor([-math.inf, 0.0, 1.0, -math.inf, 2.0, -math.inf])
    ends = [0.0, LAST]
    assert draw(logits, ends, device) == [1, 4]  # by id
    assert draw(logits, ends, device, top_k=2) == [4, 2]  # by probability
    assert draw(logits, ends, device, top_k=5) == [4, 1]
    assert draw(logits, ends, device, top_p=0.9999999) == [4, 1]


def test_equals_are_kept_and_drawn_by_id(device: str) -> None:
    logits = torch.zeros(37)
    numbers = [0.0, 0.3, 0.8, LAST]
    assert draw(logits, numbers, device, top_k=4) == [0, 1, 3, 3]
    assert draw(logits, numbers, device, top_p=0.1) == [0, 1, 3, 3]
    assert draw(logits, [0.5], device, temperature=0.0) == [0]
    logits[[31, 7]] = 2.5
    assert draw(logits, [0.1, 0.9], device, top_k=2) == [7, 31]
    assert draw(logits, [0.9], device, top_k=1) == [7]
    assert draw(logits, [0.9], device, temperature=0.0) == [7]


def test_equals_over_several_blocks(device: str) -> None:
    assert draw(torch.zeros(5003), [0.75, LAST], device, top_k=4500) == [3375, 4499]


@pytest.mark.parametrize("given", [{}, {"top_k": 3}, {"top_p": 0.9}, {"temperature": 0.0}], ids=str)
def test_one_possible_token(given: dict[str, float], device: str) -> None:
    logits = torch.full((701,), -math.inf)
    logits[513] = -3.0
    assert draw(logits, [0.0, LAST], device, **given) == [513, 513]


def test_tokens_of_no_weight_are_never_drawn(device: str) -> None:
    logits = torch.tensor([-200.0, 0.0, -110.0, 1.0, -500.0])
    for given in ({}, {"top_k": 4}, {"top_p": 0.999999}, {"top_k": 3, "top_p": 0.9999}):
        assert set(draw(logits, [0.0, 0.3, LAST], device, **given)) <= {1, 3}


@pytest.mark.parametrize("given", [{}, {"top_k": 2}, {"top_p": 0.5}], ids=str)
def test_rows_without_a_finite_highest_give_their_highest(
    given: dict[str, float], device: str
) -> None:
    assert draw(torch.full((5,), -math.inf), [0.5], device, **given) == [0]
    assert draw(torch.tensor([0.0, math.inf, 1.0]), [0.9], device, **given) == [1]


def test_a_row_does_not_depend_on_its_batch(
    generator: torch.Generator, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor on how many fit into the scratch buffer, nor on how rows lie."""
    rows, vocab = 7, 130
    wide = torch.randn(rows, vocab + 9, generator=generator) * 2
    logits = wide[:, :vocab]
    settings = {
        "temperature_S": torch.tensor([0.0, 0.5, 1.5, 1.0, 1.0, 0.0, 2.0]),
        "top_k_S": torch.tensor([0, 0, 1, 40, 0, 3, 2**40]),
        "top_p_S": torch.tensor([1.0, 0.3, 0.99, 1.0, 1.0, 0.2, 0.9]),
        "min_p_S": torch.tensor([0.0, 0.0, 0.2, 0.0, 0.1, 0.0, 0.0]),
        "uniform_S": torch.rand(rows, generator=generator, dtype=torch.float64),
    }
    together = assert_reference(logits, settings, device)
    monkeypatch.setattr(sample_file, "SAMPLE_BYTES", 3 * 8 * 256)
    assert launch(wide.to(device)[:, :vocab], settings, device) == together
    for row in range(rows):
        one = {name: value[row : row + 1] for name, value in settings.items()}
        assert launch(logits[row : row + 1], one, device) == [together[row]], f"row {row}"


@pytest.mark.parametrize("programs", [0, 1, 64])
def test_highest_does_not_depend_on_the_cut(
    programs: int, generator: torch.Generator, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(highest_file, "_PROGRAMS_PER_SM", max(programs, 1))
    if programs == 0:
        monkeypatch.setattr(highest_file, "_MAX_CHUNKS", 1)
    logits = torch.randn(3, 9001, generator=generator).mul(2).round()
    logits[1] = -math.inf
    logits[2] = -5.0
    logits[2, 4000:] = -0.0
    logits[2, 8000] = 0.0
    value, token = highest(logits.to(device), first_id=100)
    assert value.tolist() == [logits[0].max().item(), -math.inf, 0.0]
    assert token.tolist() == [100 + logits[0].tolist().index(value[0].item()), 100, 4100]


def test_logprobs_over_chunks(generator: torch.Generator, device: str) -> None:
    logits = (torch.randn(2, 9001, generator=generator) * 3).bfloat16().float()
    logits[1, :4096] = -math.inf  # a whole chunk
    tokens = torch.tensor([9000, 5])
    for k in (0, 1, 9):
        got = logprobs(logits.to(device), tokens.to(device), k)
        for one, other in zip(got, logprobs_reference(logits, tokens, k), strict=True):
            torch.testing.assert_close(one.cpu(), other, atol=1e-5, rtol=1e-5)


def test_logprobs_of_tokens_far_apart(device: str) -> None:
    logits = torch.tensor([[-math.inf, -900.0, 80.0, 80.00001, -0.0, 0.0, -901.0, -math.inf]])
    sampled, rank, ids, top = logprobs(logits.to(device), torch.tensor([1], device=device), 100)
    assert ids.tolist() == [[3, 2, 4, 5, 1, 6, 0, 7]]
    assert rank.tolist() == [5]
    assert sampled.tolist() == [top[0, 4].item()]
    assert top[0, 6:].tolist() == [-math.inf] * 2


def test_logprobs_read_nothing_outside_the_vocabulary(device: str) -> None:
    logits = torch.zeros(3, 4, device=device)
    sampled, *_ = logprobs(logits, torch.tensor([-1, 4, 2], device=device), 1)
    assert [math.isnan(one) for one in sampled.tolist()] == [True, True, False]


def test_all_adjustments_of_one_token(device: str) -> None:
    logits = torch.tensor([[3.0, -3.0, 1.0, 2.0, 0.0]]).expand(3, -1)
    counts = {0: 2, 1: 0, 2: 1, 3: 5}
    rows = [
        RowAdjustment(2, banned=[3, 4], bias={0: -5.0, 3: 9.0, 4: 1.0}, counts=counts,
                      repetition_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25),
        RowAdjustment(0, bias={2: 4.0}, counts=counts),
    ]  # fmt: skip
    got = adjust_logits(logits.to(device), rows).cpu()
    torch.testing.assert_close(got, adjust_logits_reference(logits, rows))
    assert got[2].tolist() == [-5.25, -6.0, -0.25, -math.inf, -math.inf]
    assert got[:2].tolist() == [[3.0, -3.0, 5.0, 2.0, 0.0], [3.0, -3.0, 1.0, 2.0, 0.0]]


def test_nothing_to_adjust(device: str) -> None:
    logits = torch.randn(2, 5, device=device)
    assert adjust_logits(logits, []) is logits
    same = adjust_logits(logits, [RowAdjustment(1, counts={3: 2})])
    assert torch.equal(same, logits)
    assert same is not logits


class NoSync(TorchDispatchMode):
    """Refuses what makes the host wait for the device."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "item")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        assert not any(name in str(func) for name in self.WAITS), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_sync() -> Iterator[None]:
    with NoSync():
        yield


def test_waiting_is_noticed(no_sync: None) -> None:
    with pytest.raises(AssertionError, match="waits"):
        bool(torch.ones(2).any())


def test_launches_do_not_wait(device: str, no_sync: None) -> None:
    logits = torch.randn(3, 33, device=device)
    settings = settings_of(3, [0.1, 0.5, 0.9], top_k=5, top_p=0.9)
    tokens = sample(logits, **{name: value.to(device) for name, value in settings.items()})
    logprobs(logits, tokens, 3)
    highest(logits)
    adjust_logits(logits, [RowAdjustment(1, banned=[4], bias={3: 1.0}, counts={4: 1})])


def test_refusals(device: str) -> None:
    logits = torch.zeros(2, 9, device=device)
    settings = {name: x.to(device) for name, x in settings_of(2, [0.1, 0.2]).items()}
    tokens = torch.zeros(2, dtype=torch.int64, device=device)
    with pytest.raises(UnsupportedError, match=r"sample: dtype of logits: got float16"):
        sample(logits.half(), **settings)
    with pytest.raises(UnsupportedError, match=r"sample: dtype of top_k.*int32"):
        sample(logits, **{**settings, "top_k_S": settings["top_k_S"].int()})
    with pytest.raises(UnsupportedError, match=r"sample: shape of uniform"):
        sample(logits, **{**settings, "uniform_S": settings["uniform_S"][:1]})
    with pytest.raises(UnsupportedError, match=r"distance of columns: got 2, supported: 1"):
        highest(logits.t().contiguous().t()[:, :9])
    with pytest.raises(UnsupportedError, match=r"logprobs: shape of token_ids"):
        logprobs(logits, tokens[:1], 1)
    with pytest.raises(UnsupportedError, match=r"logprobs: k for a vocabulary of 20000"):
        logprobs(torch.zeros(2, 20000, device=device), tokens, 4000)
