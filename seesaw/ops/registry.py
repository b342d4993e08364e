"""What is known of an op besides its code: how to make inputs, how exact it must be, what it costs.

Tests, benches and checks walk `OPS` (see `seesaw.ops`), so an op that is listed there gets all of
them. This file knows no particular op.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch

Case = Mapping[str, Any]
"""One shape of an op's inputs: names of sizes to numbers."""

Link = Literal["to_host", "to_device"]


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
class Bench:
    """A shape of real models, as it is timed.

    cold        on the CPU: inputs come from memory, as weights and KV do, not from caches, where
                activations are that were just written. On a GPU all come from memory
    devices     where it is timed: what would take minutes on a CPU is left to GPUs
    host        arguments in page-locked memory of the host
    link        which way over the bus, which is then the limit, and
    link_bytes  how many bytes cross it
    aim         share of the device's limit that is aimed at on an H100 or H200; None = not said
    """

    case: Case
    dtype: torch.dtype = torch.bfloat16
    cold: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")
    host: tuple[str, ...] = ()
    link: Link | None = None
    link_bytes: int = 0
    aim: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """`function(**make_inputs(generator, case, dtype))` must equal `reference(...)` of the same
    inputs within `tolerance[dtype]`.

    `reference` is the formula in its plainest form, computed in float64 or float32. An op that
    writes into its arguments lists them in `mutates`; those are compared too. `bench`: what is
    timed, by name.
    """

    name: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    make_inputs: Callable[[torch.Generator, Case, torch.dtype], dict[str, Any]]
    cases: tuple[Case, ...]
    tolerance: Mapping[torch.dtype, Tolerance]
    cost: Callable[[Case, torch.dtype], Cost]
    mutates: tuple[str, ...] = ()
    bench: Mapping[str, Bench] = field(default_factory=dict)
    door: Door | None = None


EXACT = Tolerance(0.0, 0.0)
FLOAT_TOLERANCE: Mapping[torch.dtype, Tolerance] = {
    torch.float32: Tolerance(2e-5, 2e-5),
    torch.float16: Tolerance(4e-3, 4e-3),
    torch.bfloat16: Tolerance(3e-2, 2e-2),
}
"""A few roundings of each type on values around 1."""
