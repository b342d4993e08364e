"""Log-probabilities of drawn tokens and of the five most probable ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bench.shapes import MODELS, Shapes


@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_logprobs(run_op: Callable[..., None], model: Shapes, rows: int) -> None:
    run_op("logprobs", {"rows": rows, "vocab": model.vocab, "k": 5}, torch.float32)
