"""Attention over blocks of 32 tokens: decode steps, prompts, both at once; KV from memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.shapes import MODELS, Shapes

ROWS = {
    "1 at 1024": ((1, 1024),),
    "16 at 1032": ((1, 1032),) * 16,
    "64 at 288": ((1, 288),) * 64,
    "prompts of 256": ((256, 256),) * 8,
    "prompt of 2048": ((2048, 2048),),
    "chunk beside decode": ((448, 1472), *((1, 288),) * 63),
}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_paged_attention(run_op: Callable[..., None], model: Shapes, rows: str) -> None:
    sizes = {"kv_heads": model.kv_heads, "group": model.group, "head_dim": model.head_dim}
    run_op("paged_attention", {"rows": ROWS[rows], **sizes, "block_size": 32}, cold=True)
