"""What is known of an op besides its code: how to make inputs, how exact it must be, what it costs.

Tests, benches and checks walk `OPS` (see `seesaw.ops`), so an op that is listed there gets all of
them. This file knows no particular op.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

Case = Mapping[str, Any]
"""One shape of an op's inputs: names of sizes to numbers."""


class Tolerance(NamedTuple):
    """As in `torch.testing.assert_close`."""

    atol: float
    rtol: float


class Cost(NamedTuple):
    """Least traffic of one call: every input read once, every output written once; multiply and add
    count as two flops."""

    num_bytes: int
    flops: int


@dataclass(frozen=True, slots=True)
class Door:
    """An op as `torch.ops.seesaw` has it (`door.py`).

    function  takes tensors, numbers, strings and lists of numbers, all annotated; always returns
              the same number of tensors, none of which is an argument
    fake      the same for tensors without data: shapes and dtypes of the results
    inputs    what `function` is called with instead of an op's inputs
    """

    function: Callable[..., Any]
    fake: Callable[..., Any]
    inputs: Callable[[Mapping[str, Any]], dict[str, Any]] = dict


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """`function(**make_inputs(generator, case, dtype))` must equal `reference(...)` of the same
    inputs within `tolerance[dtype]`.

    `reference` is the formula in its plainest form, computed in float64 or float32. An op that
    writes into its arguments lists them in `mutates`; those are compared too.
    """

    name: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    make_inputs: Callable[[torch.Generator, Case, torch.dtype], dict[str, Any]]
    cases: tuple[Case, ...]
    tolerance: Mapping[torch.dtype, Tolerance]
    cost: Callable[[Case, torch.dtype], Cost]
    mutates: tuple[str, ...] = ()
    door: Door | None = None


EXACT = Tolerance(0.0, 0.0)
FLOAT_TOLERANCE: Mapping[torch.dtype, Tolerance] = {
    torch.float32: Tolerance(2e-5, 2e-5),
    torch.float16: Tolerance(4e-3, 4e-3),
    torch.bfloat16: Tolerance(3e-2, 2e-2),
}
"""A few roundings of each type on values around 1."""
