"""Experts on CPUs beyond the registry's cases: equal bits in any company, sums of ranks, NaN."""

from __future__ import annotations

import importlib
import random
from typing import Any

import pytest
import torch

from seesaw.ops import moe_route
from seesaw.ops.moe_mlp_panels import moe_mlp_panels
from seesaw.ops.native import native
from seesaw.ops.panels import pack
from seesaw.ops.registry import FLOAT_TOLERANCE
from tests.ops.threads import threads

pytestmark = pytest.mark.skipif(native() is None, reason="seesaw._cpu is not built")
DTYPES = [torch.float32, torch.bfloat16]
HIDDEN, INNER, EXPERTS = 68, 36, 7


@pytest.fixture(autouse=True)
def seed() -> None:
    number = random.randrange(2**31)
    print(f"seed {number}")
    torch.manual_seed(number)


def experts(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    gate_up = torch.randn(EXPERTS, 2 * INNER, HIDDEN).mul_(HIDDEN**-0.5).to(dtype)
    down = torch.randn(EXPERTS, HIDDEN, INNER).mul_(INNER**-0.5).to(dtype)
    return {
        "gate_up_EPHZ": torch.stack([pack(one, gated=True) for one in gate_up]),
        "down_EQIZ": torch.stack([pack(one) for one in down]),
    }


def choice(tokens: int, top_k: int) -> dict[str, torch.Tensor]:
    weights, chosen = moe_route(torch.randn(tokens, EXPERTS), top_k, renormalize=True)
    return {"weights_TN": weights, "experts_TN": chosen}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_has_one_result_in_any_company(isa: str, dtype: torch.dtype) -> None:
    """Bit for bit: alone, in part of the batch, with rows of another stride, on more threads."""
    tokens = random.randint(40, 90)
    x, matrices, chosen = torch.randn(tokens, HIDDEN).to(dtype), experts(dtype), choice(tokens, 3)
    with threads(1):
        whole = moe_mlp_panels(x, **matrices, **chosen)
    with threads(3):
        assert torch.equal(moe_mlp_panels(x, **matrices, **chosen), whole)
    wide = torch.full((tokens, HIDDEN + 6), float("nan"), dtype=dtype)
    wide[:, 2:-4] = x
    assert torch.equal(moe_mlp_panels(wide[:, 2:-4], **matrices, **chosen), whole)
    for some in (torch.randperm(tokens)[:13], torch.randperm(tokens)[:1]):
        part = {name: tensor[some] for name, tensor in chosen.items()}
        assert torch.equal(moe_mlp_panels(x[some], **matrices, **part), whole[some])


@pytest.mark.parametrize("dtype", DTYPES)
def test_ranks_add_up_to_the_whole_and_count_their_own(dtype: torch.dtype) -> None:
    x, matrices, chosen = torch.randn(11, HIDDEN).to(dtype), experts(dtype), choice(11, 2)
    counts = torch.full((EXPERTS,), 5)
    whole = moe_mlp_panels(x, **matrices, **chosen, counts_E=counts)
    used = torch.zeros(EXPERTS, dtype=torch.bool)
    used[chosen["experts_TN"].long().flatten()] = True
    assert torch.equal(counts, 5 + used.long())
    total, first = torch.zeros(11, HIDDEN), 0
    for held in (1, 4, 2):
        own = {name: tensor[first : first + held] for name, tensor in matrices.items()}
        counted = torch.zeros(held, dtype=torch.int64)
        total += moe_mlp_panels(x, **own, **chosen, first_expert=first, counts_E=counted).float()
        assert torch.equal(counted, used[first : first + held].long())
        first += held
    tolerance = FLOAT_TOLERANCE[dtype]
    torch.testing.assert_close(
        total, whole.float(), atol=2 * tolerance.atol, rtol=2 * tolerance.rtol
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_experts_that_nobody_chose_are_not_read(isa: str, dtype: torch.dtype) -> None:
    """NaN in their weights does no harm, nor in tokens to those beside them."""
    x, matrices, chosen = torch.randn(9, HIDDEN).to(dtype), experts(dtype), choice(9, 2)
    expected = moe_mlp_panels(x, **matrices, **chosen)
    unused = [e for e in range(EXPERTS) if e not in chosen["experts_TN"]]
    other = {name: tensor.clone() for name, tensor in matrices.items()}
    for tensor in other.values():
        tensor[unused] = float("nan")
    assert torch.equal(moe_mlp_panels(x, **other, **chosen), expected)
    x[4] = float("nan")
    got = moe_mlp_panels(x, **matrices, **chosen)
    assert bool(got[4].isnan().all())
    rest = [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(got[rest], expected[rest])


@pytest.mark.parametrize("renormalize", [False, True])
def test_routing_with_nan_and_infinity_is_that_of_plain_torch(
    renormalize: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inf, nan = float("inf"), float("nan")
    logits = torch.randn(40, 9).round()
    for row in range(30):
        for value in (nan, -inf, inf, nan)[: 1 + row % 4]:
            logits[row, random.randrange(9)] = value
    logits[30] = nan
    logits[31] = -inf
    got = moe_route(logits, 4, renormalize=renormalize)
    monkeypatch.setattr(importlib.import_module("seesaw.ops.moe_route"), "native", lambda: None)
    weights, chosen = moe_route(logits, 4, renormalize=renormalize)
    assert torch.equal(got[1], chosen)
    torch.testing.assert_close(got[0], weights, equal_nan=True, atol=2e-6, rtol=2e-6)


def test_what_does_not_fit_is_refused() -> None:
    x, chosen = torch.randn(3, HIDDEN), choice(3, 2)
    inputs: dict[str, Any] = {"x_TH": x, **experts(torch.float32), **chosen}
    twice = chosen["experts_TN"].clone()
    twice[1] = 4
    for name, value, told in (
        ("experts_TN", twice, "token 1 has expert 4 twice"),
        ("experts_TN", chosen["experts_TN"].long(), r"experts: expected .* of torch.int32"),
        ("weights_TN", chosen["weights_TN"][:2], r"weights: expected contiguous \[3, 2\]"),
        ("x_TH", x[:, :-2], r"gate_up: expected contiguous \[7, 3, 66, 32\]"),
        ("x_TH", x.bfloat16(), "gate_up: expected .* of torch.bfloat16"),
        ("down_EQIZ", inputs["down_EQIZ"][:, :2], r"down: expected contiguous \[7, 3, 36, 32\]"),
        ("counts_E", torch.zeros(3, dtype=torch.int64), r"counts: expected contiguous \[7\]"),
    ):
        with pytest.raises(ValueError, match=told):
            moe_mlp_panels(**{**inputs, name: value})
    with pytest.raises(ValueError, match="top_k: got 8, expected 1 to 7"):
        choice(1, 8)
