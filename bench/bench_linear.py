"""Linear layers over panels, with weights from memory: those of a layer, and the head, for a row,
decode steps and a prompt. The largest shares show what a step can reach.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bench.shapes import LLAMA_1B, MODELS, SMOLLM2_135M, Shapes

ROWS = (1, 4, 8, 16, 32, 64, 256, 1024)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_gate_up(run_op: Callable[..., None], model: Shapes, rows: int) -> None:
    sizes = {"rows": rows, "columns": 2 * model.inner, "depth": model.hidden, "bias": False}
    run_op("linear_gated", {**sizes, "activation": model.activation}, cold=True)


@pytest.mark.parametrize("rows", ROWS)
def test_qkv(run_op: Callable[..., None], rows: int) -> None:
    model = SMOLLM2_135M
    sizes = {"rows": rows, "columns": model.qkv, "depth": model.hidden, "bias": False}
    run_op("linear", sizes, cold=True)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("model", [SMOLLM2_135M, LLAMA_1B], ids=lambda model: model.name)
def test_down(run_op: Callable[..., None], model: Shapes, rows: int) -> None:
    sizes = {"rows": rows, "columns": model.hidden, "depth": model.inner, "bias": False}
    run_op("linear_add", sizes, cold=True)


@pytest.mark.parametrize("rows", [1, 16, 64])
def test_head(run_op: Callable[..., None], rows: int) -> None:
    model = SMOLLM2_135M
    sizes = {"rows": rows, "columns": model.vocab, "depth": model.hidden, "bias": False}
    run_op("linear_highest", sizes, cold=True)


@pytest.mark.parametrize("rows", [1, 64, 1024])
def test_gate_up_float32(run_op: Callable[..., None], rows: int) -> None:
    model = SMOLLM2_135M
    sizes = {"rows": rows, "columns": 2 * model.inner, "depth": model.hidden, "bias": False}
    run_op("linear_gated", {**sizes, "activation": model.activation}, torch.float32, cold=True)
