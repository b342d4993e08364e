"""Every registered op against its reference, over its cases and dtypes."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from seesaw.ops import OPS, Op
from seesaw.ops.registry import EXACT, Tolerance
from tests.ops.threads import threads

SEED = random.randrange(2**31)

DTYPE_CASES = [
    pytest.param(op.name, index, dtype, id=f"{op.name}-{index}-{str(dtype).removeprefix('torch.')}")
    for op in OPS.values()
    for index in range(len(op.cases))
    for dtype in op.tolerance
]
KERNEL_CASES = [case for case in DTYPE_CASES if case.values[2] in (torch.float32, torch.bfloat16)]


def make_inputs(name: str, index: int, dtype: torch.dtype) -> dict[str, Any]:
    op = OPS[name]
    return op.make_inputs(torch.Generator().manual_seed(SEED), op.cases[index], dtype)


@functools.cache
def expected(name: str, index: int, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """What the reference returns, and its inputs afterwards."""
    inputs = make_inputs(name, index, dtype)
    return OPS[name].reference(**inputs), inputs


def assert_equal(got: Any, expected: Any, tolerance: Tolerance) -> None:
    if isinstance(expected, tuple):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_equal(one, other, tolerance)
    elif expected is None:
        assert got is None
    else:
        if got.dtype == torch.float8_e4m3fn:  # which assert_close compares by bits alone
            got, expected = got.float(), expected.float()
        torch.testing.assert_close(
            got, expected, atol=tolerance.atol, rtol=tolerance.rtol, equal_nan=False
        )


def on(device: str, value: Any) -> Any:
    """`value` with its tensors on `device`."""
    if isinstance(value, tuple):
        return tuple(on(device, one) for one in value)
    return value.to(device) if isinstance(value, torch.Tensor) else value


def check(name: str, index: int, dtype: torch.dtype, device: str) -> Any:
    """`check_call` of the op's own function."""
    return check_call(OPS[name].function, name, index, dtype, device)


def check_call(
    call: Callable[..., Any], name: str, index: int, dtype: torch.dtype, device: str
) -> Any:
    """Make `call` on the device under test, the reference on the CPU, and compare what they return
    and what they changed. Returns what the call returned."""
    op = OPS[name]
    result, after = expected(name, index, dtype)
    before = make_inputs(name, index, dtype)
    inputs = make_inputs(name, index, dtype)
    if device != "cpu":
        inputs = {name: on(device, value) for name, value in inputs.items()}
    got = on("cpu", call(**inputs))
    inputs = {name: on("cpu", value) for name, value in inputs.items()}
    tolerance = op.tolerance[dtype]
    assert_equal(got, result, tolerance)
    for argument, value in inputs.items():
        if isinstance(value, torch.Tensor):
            if argument in op.mutates:
                assert_equal(value, after[argument], tolerance)
            else:
                assert torch.equal(value, before[argument]), f"{argument} was changed (seed {SEED})"
    return got


@pytest.mark.parametrize(("name", "index", "dtype"), DTYPE_CASES)
@pytest.mark.usefixtures("plain_torch")
def test_plain_torch_equals_reference(
    name: str, index: int, dtype: torch.dtype, device: str
) -> None:
    check(name, index, dtype, device)


@pytest.mark.parametrize(("name", "index", "dtype"), KERNEL_CASES)
def test_kernels_equal_reference(name: str, index: int, dtype: torch.dtype, isa: str) -> None:
    """With any number of threads the same bits."""
    got = {}
    for num_threads in (1, 2):
        with threads(num_threads):
            got[num_threads] = check(name, index, dtype, "cpu")
    assert_equal(got[1], got[2], EXACT)


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
