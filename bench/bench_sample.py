"""Tokens drawn from logits: rows of mixed settings, a quarter of them greedy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bench.shapes import MODELS, Shapes


@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_sample(run_op: Callable[..., None], model: Shapes, rows: int) -> None:
    run_op("sample", {"rows": rows, "vocab": model.vocab, "spread": 3.0}, torch.float32)
