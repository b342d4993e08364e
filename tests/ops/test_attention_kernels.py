"""The C++ attention kernel: all instruction sets, thread counts and forms of tiles; pools full of
NaN; results that do not depend on what else is in the batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch

from seesaw.ops.kv_panels import k_from_panels, k_to_panels, v_from_panels, v_to_panels
from seesaw.ops.native import native
from seesaw.ops.paged_attention import OP, paged_attention, paged_attention_reference

Rows = list[tuple[int, int]]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """`threads(n)` replaces the threads that kernels run on, until the test ends."""
    cpu = native()
    assert cpu is not None, "the C++ kernels are not built"
    before = cpu.num_threads()
    yield cpu.configure_threads
    cpu.configure_threads(before)


class Pool:
    """Keys, values and queries of rows in a pool that is NaN elsewhere; plain, and in panels."""

    def __init__(
        self, rows: Rows, kv_heads: int, group: int, size: int, block_size: int, dtype: torch.dtype
    ) -> None:
        self.seed = random.randrange(2**31)
        draw = torch.Generator().manual_seed(self.seed)
        counts = [-(-tokens // block_size) for _, tokens in rows]
        blocks = sum(counts) + 1
        shape = (blocks, kv_heads, block_size, size)
        k, v = (torch.full(shape, float("nan"), dtype=dtype) for _ in range(2))
        self.table = torch.full((len(rows), max(counts) + 1), -1, dtype=torch.int32)
        order = torch.randperm(blocks, generator=draw).tolist()
        for row, (_, tokens) in enumerate(rows):
            for block in range(counts[row]):
                here = self.table[row, block] = order.pop()
                length = min(block_size, tokens - block * block_size)
                for pool in (k, v):
                    numbers = torch.randn(kv_heads, length, size, generator=draw)
                    pool[here, :, :length] = numbers.to(dtype)
        self.k, self.v = k.transpose(1, 2), v.transpose(1, 2)
        self.panels = (
            (k_to_panels(k).transpose(1, 2), v_to_panels(v).transpose(1, 2))
            if block_size % 32 == 0
            else None
        )
        heads = kv_heads * group
        self.q = [torch.randn(n, heads, size, generator=draw).to(dtype) for _, n in rows]
        self.scale = size**-0.5

    def attend(
        self, parts: list[tuple[int, int, int]], panels: bool = False, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and lse of positions start..stop of rows, given as (row, start, stop)."""
        cu_seqlens = [0]
        for _, start, stop in parts:
            cu_seqlens.append(cu_seqlens[-1] + stop - start)
        k, v = self.panels if panels and self.panels else (self.k, self.v)
        return paged_attention(
            torch.cat([self.q[row][start:stop] for row, start, stop in parts]),
            k,
            v,
            self.table[[row for row, _, _ in parts]],
            cu_seqlens,
            [stop for _, _, stop in parts],
            sm_scale=self.scale,
            panels=panels,
            return_lse=True,
            **options,
        )

    def expect(self, row: int, start: int, stop: int, **options: Any) -> Any:
        return paged_attention_reference(
            self.q[row][start:stop], self.k, self.v, self.table[row : row + 1], [0, stop - start],
            [stop], sm_scale=self.scale, return_lse=True, **options,
        )  # fmt: skip


def random_rows(count: int, longest: int) -> Rows:
    rows = []
    for _ in range(count):
        tokens = random.choice((1, 2, 33, random.randint(1, longest)))
        queries = random.choice((0, 1, 1, tokens, random.randint(1, tokens)))
        rows.append((queries, tokens))
    return rows


OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"sliding_window": 1},
    {"sliding_window": 20},
    {"sliding_window": 290, "soft_cap": 3.0},
    {"soft_cap": 2.0},
)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_ragged_rows_in_a_pool_of_nan(
    isa: str, dtype: torch.dtype, num_threads: int, threads: Callable[[int], None]
) -> None:
    threads(num_threads)
    for options in OPTIONS:
        rows = random_rows(5, 600)
        size, group = random.choice((16, 48, 64, 80, 128, 256)), random.choice((1, 2, 3, 7, 16))
        block_size = random.choice((1, 7, 16, 32, 64, 96))
        pool = Pool(rows, random.choice((1, 2, 3)), group, size, block_size, dtype)
        parts = [(row, n - queries, n) for row, (queries, n) in enumerate(rows)]
        what = f"seed {pool.seed}, {rows}, {group=}, {size=}, {block_size=}, {options}"
        out, lse = pool.attend(parts, **options)
        tolerance = OP.tolerance[dtype]
        first = 0
        for row, start, stop in parts:
            last = first + stop - start
            for got, expected in zip(
                (out, lse), pool.expect(row, start, stop, **options), strict=True
            ):
                error = (got[first:last] - expected).abs().double()
                allowed = tolerance.atol + tolerance.rtol * expected.abs().double()
                assert bool((error <= allowed).all()), f"row {row}: {error.max()}; {what}"
            first = last
        if block_size % 32 == 0:
            in_panels = pool.attend(parts, panels=True, **options)
            assert torch.equal(in_panels[0], out), what
            assert torch.equal(in_panels[1], lse), what


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("panels", [False, True], ids=["plain", "panels"])
def test_a_query_has_one_result_in_any_batch(
    isa: str, panels: bool, options: dict[str, Any]
) -> None:
    """Bit for bit, however its prompt is cut and whatever other rows there are."""
    tokens = random.randint(530, 700)
    group, size = random.choice((1, 3, 7)), random.choice((16, 64, 80))
    dtype = random.choice((torch.float32, torch.bfloat16))
    rows = [(0, tokens), *random_rows(4, 300)]
    pool = Pool(rows, 2, group, size, 32, dtype)
    what = f"seed {pool.seed}, {rows}, {group=}, {size=}, {dtype}"
    whole = pool.attend([(0, 0, tokens)], panels, **options)
    others = [(row, n - queries, n) for row, (queries, n) in enumerate(rows)][1:]
    cuts = sorted({0, tokens - 1, tokens, *(random.randrange(tokens) for _ in range(6))})
    for start, stop in pairwise(cuts):
        parts = [*others, (0, start, stop)]
        random.shuffle(parts)
        got = pool.attend(parts, panels, **options)
        place = parts.index((0, start, stop))
        first = sum(b - a for _, a, b in parts[:place])
        for one, other in zip(got, whole, strict=True):
            here = one[first : first + stop - start]
            assert torch.equal(here, other[start:stop]), f"{start}..{stop}; {what}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("window", [None, 5000])
def test_keys_split_between_threads_change_no_bit(
    isa: str, dtype: torch.dtype, window: int | None, threads: Callable[[int], None]
) -> None:
    """Few rows over many keys; 48 query rows a task leave few slots, so that there are several
    rounds and tasks that a round's end cuts."""
    rows = [(3, 8000), (0, 10), (2, 300), (1, 6001)]
    pool = Pool(rows, 1, 16, 16, 64, dtype)
    parts = [(row, n - queries, n) for row, (queries, n) in enumerate(rows)]
    threads(1)
    alone = pool.attend(parts, panels=True, sliding_window=window)
    expected, _ = pool.expect(0, 7997, 8000, sliding_window=window)
    tolerance = OP.tolerance[dtype]
    torch.testing.assert_close(alone[0][:3], expected, atol=tolerance.atol, rtol=tolerance.rtol)
    for num_threads in (2, 3):
        threads(num_threads)
        for panels in (False, True):
            got = pool.attend(parts, panels=panels, sliding_window=window)
            for one, other in zip(got, alone, strict=True):
                assert torch.equal(one, other), f"{num_threads} threads, seed {pool.seed}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_panels_and_back(dtype: torch.dtype) -> None:
    tile = torch.randn(2, 3, 64, 48).to(dtype)
    k, v = k_to_panels(tile), v_to_panels(tile)
    assert torch.equal(k_from_panels(k), tile)
    assert torch.equal(v_from_panels(v), tile)
    depth = 4 // dtype.itemsize
    # token 37, dim 11 of a tile, as kv_view.h says
    piece, token, dim = 1, 5, 11
    at_k = piece * 32 * 48 + (dim // depth * 32 + token) * depth + dim % depth
    at_v = piece * 32 * 48 + (token // depth * 48 + dim) * depth + token % depth
    assert torch.equal(k.flatten(-2)[..., at_k], tile[..., 37, 11])
    assert torch.equal(v.flatten(-2)[..., at_v], tile[..., 37, 11])
    with pytest.raises(ValueError, match="32 tokens"):
        k_to_panels(tile[:, :, :48])


def test_what_does_not_fit_is_refused() -> None:
    pytest.importorskip("seesaw._cpu")
    pool = Pool([(1, 40)], 1, 2, 64, 32, torch.float32)
    q, table = pool.q[0][-1:], pool.table
    caches = (pool.k, pool.v)
    options: dict[str, Any] = {"sm_scale": 0.125}
    with pytest.raises(IndexError, match=r"row 0: block -1: expected .* less than 3"):
        paged_attention(q, *caches, table, [0, 1], [70], **options)
    with pytest.raises(ValueError, match="100 tokens take 4 blocks, the table has room for 3"):
        paged_attention(q, *caches, table, [0, 1], [100], **options)
    with pytest.raises(ValueError, match="2 queries of 1 tokens"):
        paged_attention(pool.q[0][:2], *caches, table, [0, 2], [1], **options)
    with pytest.raises(ValueError, match="cu_seqlens_q ends at 2"):
        paged_attention(q, *caches, table, [0, 2], [40], **options)
    with pytest.raises(ValueError, match="do not fit"):
        paged_attention(q[..., :32], *caches, table, [0, 1], [40], **options)
    short = (pool.k[:, :31], pool.v[:, :31])
    with pytest.raises(ValueError, match="block_size 31"):
        paged_attention(q, *short, table, [0, 1], [31], panels=True, **options)


def test_panels_without_the_kernels_are_refused(plain_torch: None) -> None:
    pool = Pool([(1, 40)], 1, 2, 64, 32, torch.float32)
    with pytest.raises(ValueError, match=r"C\+\+ kernel alone"):
        pool.attend([(0, 39, 40)], panels=True)
