"""Sampling by the C++ kernels against plain torch, with each instruction set."""

from __future__ import annotations

import math
import random

import pytest
import torch

from seesaw.ops import sample


@pytest.mark.parametrize("spread", [1e-3, 1.0, 40.0])
@pytest.mark.parametrize("vocab", [255, 257, 20_000])
def test_kernels_draw_what_plain_torch_draws(
    vocab: int, spread: float, isa: str, request: pytest.FixtureRequest
) -> None:
    """Also where buckets hold few tokens and where they hold thousands."""
    rows = 30
    seed = random.randrange(2**31)
    torch.manual_seed(seed)
    logits = torch.randn(rows, vocab) * spread
    logits[::2] = logits[::2].bfloat16().float()  # equals
    logits[torch.rand(rows, vocab) < 0.2] = -math.inf
    settings = {
        "temperature_S": torch.tensor(random.choices((0.0, 0.05, 1.0, 4.0), k=rows)),
        "top_k_S": torch.tensor(random.choices((0, 0, 1, 50, vocab - 1), k=rows)),
        "top_p_S": torch.tensor(random.choices((1.0, 1e-6, 0.5, 0.95, 0.9999), k=rows)),
        "min_p_S": torch.tensor(random.choices((0.0, 0.0, 0.1, 1.0), k=rows)),
        "uniform_S": torch.rand(rows, dtype=torch.float64),
    }
    got = sample(logits, **settings)
    request.getfixturevalue("plain_torch")
    assert torch.equal(got, sample(logits, **settings)), f"seed {seed}"
