"""Keys and values of a step into blocks of 32 tokens: a row, a decode step, a prompt."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.shapes import MODELS, Shapes


@pytest.mark.parametrize("tokens", [1, 64, 2048])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_kv_write(run_op: Callable[..., None], model: Shapes, tokens: int) -> None:
    sizes = {"kv_heads": model.kv_heads, "head_dim": model.head_dim}
    # Slots in no order in a pool of twice the size: a block has tokens of several sequences.
    run_op(
        "kv_write", {"tokens": tokens, **sizes, "block_size": 32, "num_blocks": tokens // 16 + 2}
    )
