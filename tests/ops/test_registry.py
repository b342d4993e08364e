"""Every registered op against its reference, over its cases and dtypes."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch

from seesaw.ops import OPS, Op
from seesaw.ops.registry import Case, Tolerance

DTYPE_CASES = [
    pytest.param(op, case, dtype, id=f"{op.name}-{index}-{str(dtype).removeprefix('torch.')}")
    for op in OPS.values()
    for index, case in enumerate(op.cases)
    for dtype in op.tolerance
]


def assert_equal(got: Any, expected: Any, tolerance: Tolerance) -> None:
    if isinstance(expected, tuple):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_equal(one, other, tolerance)
    elif expected is None:
        assert got is None
    else:
        torch.testing.assert_close(
            got, expected, atol=tolerance.atol, rtol=tolerance.rtol, equal_nan=False
        )


def on(device: str, value: Any) -> Any:
    """`value` with its tensors on `device`."""
    if isinstance(value, tuple):
        return tuple(on(device, one) for one in value)
    return value.to(device) if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize(("op", "case", "dtype"), DTYPE_CASES)
def test_function_equals_reference(op: Op, case: Case, dtype: torch.dtype, device: str) -> None:
    """The function on the device under test; the reference always on the CPU."""
    seed = random.randrange(2**31)
    inputs = op.make_inputs(torch.Generator().manual_seed(seed), case, dtype)
    # deepcopy keeps strides and shared storage, as views of one pool have them
    expected_inputs = copy.deepcopy(inputs)
    before = copy.deepcopy(inputs)
    expected = op.reference(**expected_inputs)
    if device != "cpu":
        inputs = {name: on(device, value) for name, value in inputs.items()}
    got = on("cpu", op.function(**inputs))
    inputs = {name: on("cpu", value) for name, value in inputs.items()}
    tolerance = op.tolerance[dtype]
    assert_equal(got, expected, tolerance)
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor):
            assert_equal(value, expected_inputs[name], tolerance)
            if name not in op.mutates:
                assert torch.equal(value, before[name]), f"{name} was changed (seed {seed})"


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_cost_is_at_least_the_bytes_of_the_result(op: Op) -> None:
    for case in op.cases:
        cost = op.cost(case, torch.float32)
        inputs = op.make_inputs(torch.Generator().manual_seed(1), case, torch.float32)
        result = op.function(**inputs)
        results = result if isinstance(result, tuple) else (result,)
        written = [one for one in results if isinstance(one, torch.Tensor)]
        assert cost.num_bytes >= sum(one.nbytes for one in written), case
        assert cost.flops >= 0
    assert max(op.cost(case, torch.float32).num_bytes for case in op.cases) > 0


def test_registry_covers_odd_shapes() -> None:
    for op in OPS.values():
        results = []
        for case in op.cases:
            inputs = op.make_inputs(torch.Generator().manual_seed(1), case, torch.float32)
            results.append(min(v.numel() for v in inputs.values() if isinstance(v, torch.Tensor)))
        assert 0 in results, f"{op.name}: no empty case"
