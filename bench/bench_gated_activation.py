"""act(gate) * up of an MLP, where it is not part of the linear layer before it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.shapes import MODELS, Shapes


@pytest.mark.parametrize("tokens", [1, 64, 2048])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_gated_activation(run_op: Callable[..., None], model: Shapes, tokens: int) -> None:
    case = {"tokens": tokens, "intermediate": model.inner, "activation": model.activation}
    run_op("gated_activation", case)
