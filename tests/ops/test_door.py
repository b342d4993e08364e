"""Ops behind torch.library: opcheck over each op's cases, and use under torch.compile."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from seesaw.ops import OPS
from tests.ops.test_registry import SEED

WITH_DOOR = [op for op in OPS.values() if op.door is not None]
CASES = [
    pytest.param(op.name, index, id=f"{op.name}-{index}")
    for op in WITH_DOOR
    for index in range(min(3, len(op.cases)))
]


def test_every_op_has_a_door() -> None:
    assert {op.name for op in WITH_DOOR} == set(OPS)


def test_ops_work_where_the_engine_was_never_imported() -> None:
    code = (
        "import sys, torch, seesaw.ops as ops; ops.rms_norm(torch.ones(2, 8), torch.ones(8), 1e-5);"
        "parts = {name.split('.')[1] for name in sys.modules if name.startswith('seesaw.')};"
        "print(*sorted(parts & {'engine', 'scheduler', 'models', 'layers', 'weights', 'api'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def inputs_of(name: str, index: int, device: str) -> dict[str, Any]:
    op = OPS[name]
    assert op.door is not None
    made = op.make_inputs(torch.Generator().manual_seed(SEED), op.cases[index], torch.float32)
    given = op.door.inputs(made)
    return {
        key: _placed(value, device) if isinstance(value, torch.Tensor) else value
        for key, value in given.items()
    }


def _placed(value: torch.Tensor, device: str) -> torch.Tensor:
    """On `device`; an empty view whole, as opcheck cannot copy a slice of nothing."""
    return (
        value.to(device)
        if value.numel()
        else torch.empty(value.shape, dtype=value.dtype).to(device)
    )


@pytest.mark.parametrize(("name", "index"), CASES)
def test_opcheck(name: str, index: int, device: str) -> None:
    torch.library.opcheck(
        getattr(torch.ops.seesaw, name).default, (), inputs_of(name, index, device)
    )


@pytest.mark.parametrize("name", [op.name for op in WITH_DOOR])
def test_compiled_calls_give_the_same(name: str, device: str) -> None:
    call = getattr(torch.ops.seesaw, name)
    largest = len(OPS[name].cases) - 1
    plain, compiled = (inputs_of(name, largest, device) for _ in range(2))

    def run(inputs: dict[str, Any]) -> Any:
        return call(**inputs)

    torch._dynamo.reset()  # else this function counts as one that is compiled again and again
    expected = run(plain)
    got = torch.compile(run, backend="aot_eager", fullgraph=True)(compiled)
    torch.testing.assert_close(got, expected, equal_nan=True)
    for argument in compiled.keys() & set(OPS[name].mutates):
        torch.testing.assert_close(compiled[argument], plain[argument], equal_nan=True)
