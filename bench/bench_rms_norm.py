"""RMSNorm of the residual stream with the addition before it: a row, a decode step, a prompt."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.shapes import MODELS, Shapes


@pytest.mark.parametrize("rows", [1, 64, 2048])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_rms_norm(run_op: Callable[..., None], model: Shapes, rows: int) -> None:
    run_op("rms_norm", {"rows": (rows,), "size": model.hidden, "residual": True, "plus_one": False})
