"""Linear layers over panels beyond the registry's cases: slices, threads, NaN, equal bits."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from seesaw.ops import linear, linear_add, linear_gated, linear_highest
from seesaw.ops.linear import (
    linear_add_reference,
    linear_gated_reference,
    linear_highest_reference,
    linear_reference,
)
from seesaw.ops.panels import pack, pack_bias, unpack
from seesaw.ops.registry import FLOAT_TOLERANCE
from tests.ops.threads import threads

DTYPES = [torch.float32, torch.bfloat16]

Call = Callable[[torch.Tensor], torch.Tensor]


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    atol, rtol = FLOAT_TOLERANCE[got.dtype]
    torch.testing.assert_close(got, expected, atol=atol, rtol=rtol, equal_nan=True)


def random_matrix(rows: int, columns: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(rows, columns) * scale).to(dtype)


@pytest.fixture(autouse=True)
def seed() -> None:
    number = random.randrange(2**31)
    print(f"seed {number}")
    torch.manual_seed(number)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
def test_panels_hold_each_number_in_its_place(dtype: torch.dtype, gated: bool) -> None:
    plain = random_matrix(46, 6, dtype)
    panels = pack(plain, gated)
    assert panels.shape == (2, 6, 32)
    assert torch.equal(unpack(panels, 46, gated), plain)
    words = panels.flatten().tolist()
    pair = 2 if dtype.itemsize == 2 else 1
    for row, k in ((0, 0), (5, 3), (22, 5), (23, 1), (45, 4)):
        column = row
        if gated:
            half, place = divmod(row, 23)
            column = place // 16 * 32 + half * 16 + place % 16
        panel, place = divmod(column, 32)
        index = ((panel * (6 // pair) + k // pair) * 32 + place) * pair + k % pair
        assert words[index] == plain[row, k].item()
    assert panels.count_nonzero() == plain.count_nonzero()


def test_an_odd_depth_has_no_pairs() -> None:
    with pytest.raises(ValueError, match="expected even"):
        pack(torch.zeros(3, 5, dtype=torch.bfloat16))
    assert torch.equal(unpack(pack(torch.ones(3, 5)), 3), torch.ones(3, 5))


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_threads_and_sets(isa: str, dtype: torch.dtype, num_threads: int) -> None:
    """Shapes that are cut into several groups of rows, pieces and blocks."""
    with threads(num_threads):
        for rows, columns, depth in ((1, 1000, 64), (7, 33, 130), (30, 700, 32), (150, 40, 2048)):
            plain = random_matrix(columns, depth, dtype, depth**-0.5)
            x = random_matrix(rows, depth, dtype)
            panels = pack(plain)
            assert_close(linear(x, panels, columns), linear_reference(x, panels, columns))
            value, column = linear_highest(x, panels, columns)
            sums = linear_reference(x, panels, columns, out_dtype=torch.float64)
            assert_close(value, sums.amax(1).float())
            assert_close(sums.gather(1, column[:, None]).squeeze(1).float(), value)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_bits_in_any_batch(isa: str, dtype: torch.dtype) -> None:
    depth, columns = 78, 70
    plain = random_matrix(columns, depth, dtype, depth**-0.5)
    panels, gated = pack(plain), pack(plain, gated=True)
    bias = random_matrix(1, 96, dtype)[0]
    before = random_matrix(40, columns, dtype)
    x = random_matrix(40, depth, dtype)

    def added(x: torch.Tensor) -> torch.Tensor:
        # rows of `before` belong to rows of x
        out = before[: len(x)].clone() if len(x) > 1 else before[row : row + 1].clone()
        linear_add(x, panels, out, bias)
        return out

    calls: list[Call] = [
        lambda x: linear(x, panels, columns, bias),
        lambda x: linear(x, panels, columns, bias, torch.float32),
        lambda x: linear_gated(x, gated, columns // 2, "silu", bias),
        lambda x: linear_highest(x, panels, columns, bias)[0],
        added,
    ]
    for call in calls:
        whole = call(x)
        for rows in (2, 3, 5, 8, 11, 12, 13, 25):
            assert torch.equal(call(x[:rows]), whole[:rows])
        for row in (0, 17, 39):
            assert torch.equal(call(x[row : row + 1]), whole[row : row + 1])
        with threads(3):
            assert torch.equal(call(x), whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_slice_of_a_larger_matrix_runs_as_it_lies(isa: str, dtype: torch.dtype) -> None:
    """The rank's part of a row-parallel weight: some k of each panel, with its columns of x."""
    depth, columns = 96, 70
    panels = pack(random_matrix(columns, depth, dtype, depth**-0.5))
    x = random_matrix(14, depth, dtype)
    total = torch.zeros(14, columns)
    for start, stop in ((0, 10), (10, 64), (64, 96)):
        part = panels[:, start:stop]
        assert not part.is_contiguous()
        total += linear(x[:, start:stop], part, columns, out_dtype=torch.float32)
    expected = linear_reference(x, panels, columns, out_dtype=torch.float32)
    torch.testing.assert_close(total, expected, atol=3e-5, rtol=2e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_and_weights_at_any_address_and_nothing_else_is_written(
    isa: str, dtype: torch.dtype
) -> None:
    depth, columns = 34, 45
    panels = pack(random_matrix(columns, depth, dtype, depth**-0.5))
    held = torch.zeros(panels.numel() + 1, dtype=dtype)[1:].view_as(panels).copy_(panels)
    for rows in (1, 3, 13):
        x = random_matrix(rows, depth + 3, dtype)[:, 3:]
        whole = torch.full((rows + 2, columns + 6), 7.0).to(dtype)
        before = random_matrix(rows, columns, dtype)
        out = whole[1 : rows + 1, 3 : columns + 3].copy_(before)
        expected = before.clone()
        linear_add(x, held, out)
        linear_add_reference(x, panels, expected)
        assert_close(out, expected)
        out.fill_(7.0)
        assert (whole == 7).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_reach_their_rows_and_columns_only(isa: str, dtype: torch.dtype) -> None:
    depth, columns = 32, 40
    plain = random_matrix(columns, depth, dtype)
    x = random_matrix(14, depth, dtype)
    clean = linear(x, pack(plain), columns)
    x[3, 5], x[4, 31], plain[33, 0] = math.nan, math.inf, math.nan
    got = linear(x, pack(plain), columns)
    assert got[3].isnan().all()
    assert got[:, 33].isnan().all()
    assert not got[4, :33].isfinite().any()
    rows = [row for row in range(14) if row not in (3, 4)]
    rest = [column for column in range(columns) if column != 33]
    assert torch.equal(got[rows][:, rest], clean[rows][:, rest])
    assert_close(got, linear_reference(x, pack(plain), columns))
    gated = pack(plain, gated=True)
    out = linear_gated(x, gated, 20, "gelu_pytorch_tanh")
    assert out[3].isnan().all()
    assert out[:, 13].isnan().all()
    assert out[rows][:, [i for i in range(20) if i != 13]].isfinite().all()


@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh"])
def test_gates_far_from_zero(isa: str, activation: Any) -> None:
    gates = [-3e38, -1e30, -1e4, -200.0, -88.5, -20.0, -1.0, -0.0, 0.0, 1.0, 90.0, 1e30]
    weight = torch.tensor([*gates, *[1.0] * len(gates)])[:, None]
    panels = pack(weight, gated=True)
    x = torch.ones(1, 1)
    got = linear_gated(x, panels, len(gates), activation)
    assert_close(got, linear_gated_reference(x, panels, len(gates), activation))
    assert (got[0, :4] == 0).all() or got[0, :4].abs().max() < 1e-30


@pytest.mark.parametrize("rows", [1, 14])
def test_highest_of_nan_infinity_and_equals(isa: str, rows: int) -> None:
    nan, inf = math.nan, math.inf
    cases = [
        ([nan] * 40, 0),
        ([nan] * 39 + [-inf], 39),
        ([-inf] * 40, 0),
        ([-inf] * 7 + [nan] + [-1.0] * 32, 8),
        ([0.0] * 5 + [3.0] + [1.0] * 30 + [3.0] * 4, 5),
        ([-5.0] * 38 + [inf, inf], 38),
        ([nan] + [-2.0] * 39, 1),
    ]
    for logits, best in cases:
        panels = pack(torch.tensor(logits)[:, None])
        for number in (1, 3):
            with threads(number):
                value, column = linear_highest(torch.ones(rows, 1), panels, 40)
            assert column.tolist() == [best] * rows
            assert_close(value, torch.full((rows,), logits[best]))
        reference = linear_highest_reference(torch.ones(rows, 1), panels, 40)
        assert reference[1].tolist() == [best] * rows
    # what pads would win: all real columns are below zero
    value, column = linear_highest(torch.ones(rows, 1), pack(torch.full((33, 1), -4.0)), 33)
    assert (value.tolist(), column.tolist()) == ([-4.0] * rows, [0] * rows)


def test_plain_torch_agrees_where_there_are_no_kernels(plain_torch: None) -> None:
    plain, x = random_matrix(40, 34, torch.bfloat16, 0.2), random_matrix(5, 34, torch.bfloat16)
    panels, bias = pack(plain, gated=True), random_matrix(1, 64, torch.bfloat16)[0]
    got = linear_gated(x, panels, 20, "silu", bias)
    assert_close(got, linear_gated_reference(x, panels, 20, "silu", bias))
    column = linear_highest(x, pack(plain), 40)[1]
    assert torch.equal(column, linear_reference(x, pack(plain), 40, None, torch.float64).argmax(1))
    assert torch.equal(pack_bias(torch.arange(40.0), gated=True)[16:20], torch.arange(20.0, 24.0))


def test_wrong_shapes_are_refused() -> None:
    panels, x = pack(torch.zeros(70, 8)), torch.zeros(2, 8)
    wrong: list[tuple[str, Callable[[], object]]] = [
        ("panels", lambda: linear(x, panels.transpose(0, 1), 70)),
        ("panels", lambda: linear(x, panels[:, :, :16], 70)),
        ("x: expected", lambda: linear(torch.zeros(2, 6), panels, 70)),
        ("x: expected", lambda: linear(torch.zeros(8, 2).T, panels, 70)),
        ("num_columns", lambda: linear(x, panels, 97)),
        ("num_columns", lambda: linear(x, panels, 64)),
        ("bias", lambda: linear(x, panels, 70, torch.zeros(70))),
        ("panels and bias", lambda: linear(x.bfloat16(), panels, 70)),
        ("out", lambda: linear(x, panels, 70, None, torch.float16)),
        ("out", lambda: linear_add(x, panels, torch.zeros(3, 70))),
        ("out", lambda: linear_add(x, panels, torch.zeros(2, 70, dtype=torch.bfloat16))),
        ("no columns", lambda: linear_highest(x, panels[:0], 0)),
    ]
    for words, call in wrong:
        with pytest.raises(ValueError, match=words):
            call()
