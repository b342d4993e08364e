"""RoPE of all heads of a layer: a row, a decode step, a prompt."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.shapes import MODELS, Shapes


@pytest.mark.parametrize("tokens", [1, 64, 2048])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_rope(run_op: Callable[..., None], model: Shapes, tokens: int) -> None:
    sizes = {"kv_heads": model.kv_heads, "group": model.group, "head_dim": model.head_dim}
    run_op("rope", {"tokens": tokens, **sizes})
