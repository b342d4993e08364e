"""Inputs and costs of the linear ops: what tests and benches of `linear.py` take."""

from __future__ import annotations

import torch

from seesaw.ops.panels import pack, pack_bias
from seesaw.ops.registry import Case, Cost


def _make_inputs(generator: torch.Generator, case: Case, dtype: torch.dtype) -> dict[str, object]:
    rows, columns, depth = case["rows"], case["columns"], case["depth"]
    gated = "activation" in case
    weight_NK = torch.randn(columns, depth, generator=generator).mul_(depth**-0.5).to(dtype)
    bias = torch.randn(columns, generator=generator).to(dtype)
    return {
        "x_MK": torch.randn(rows, depth, generator=generator).to(dtype),
        "panels_PKZ": pack(weight_NK, gated),
        "bias": pack_bias(bias, gated) if case["bias"] else None,
    }


def linear_inputs(generator: torch.Generator, case: Case, dtype: torch.dtype) -> dict[str, object]:
    return {**_make_inputs(generator, case, dtype), "num_columns": case["columns"]}


def add_inputs(generator: torch.Generator, case: Case, dtype: torch.dtype) -> dict[str, object]:
    out_MN = torch.randn(case["rows"], case["columns"], generator=generator).to(dtype)
    return {**_make_inputs(generator, case, dtype), "out_MN": out_MN}


def gated_inputs(generator: torch.Generator, case: Case, dtype: torch.dtype) -> dict[str, object]:
    inputs = _make_inputs(generator, case, dtype)
    return {**inputs, "intermediate": case["columns"] // 2, "activation": case["activation"]}


def highest_inputs(generator: torch.Generator, case: Case, dtype: torch.dtype) -> dict[str, object]:
    """Small whole numbers: sums are exact and often equal."""

    def whole(*shape: int) -> torch.Tensor:
        return torch.randint(-1, 2, shape, generator=generator).to(dtype)

    rows, columns, depth = case["rows"], case["columns"], case["depth"]
    return {
        "x_MK": whole(rows, depth),
        "panels_PKZ": pack(whole(columns, depth)),
        "num_columns": columns,
        "bias": pack_bias(whole(columns)) if case["bias"] else None,
    }


def linear_cost(case: Case, dtype: torch.dtype) -> Cost:
    rows, columns, depth = case["rows"], case["columns"], case["depth"]
    weights = columns * depth + (columns if case["bias"] else 0)
    out = rows * (columns // 2 if "activation" in case else columns)
    num_bytes = (weights + rows * depth + out) * dtype.itemsize
    return Cost(num_bytes, 2 * rows * columns * depth)


def add_cost(case: Case, dtype: torch.dtype) -> Cost:
    cost = linear_cost(case, dtype)
    return cost._replace(num_bytes=cost.num_bytes + case["rows"] * case["columns"] * dtype.itemsize)


def highest_cost(case: Case, dtype: torch.dtype) -> Cost:
    cost = linear_cost(case, dtype)
    logits = case["rows"] * case["columns"] * dtype.itemsize
    return cost._replace(num_bytes=cost.num_bytes - logits + 12 * case["rows"])


CASES = tuple(
    {"rows": rows, "columns": columns, "depth": depth, "bias": bias}
    for rows, columns, depth, bias in (
        (0, 40, 6, True),
        (1, 2, 2, False),
        (1, 576, 576, False),
        (3, 32, 46, True),
        (12, 100, 46, False),
        (13, 64, 576, True),
        (50, 226, 2, True),
        (257, 96, 46, False),
    )
)
