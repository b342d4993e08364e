"""Paged attention against torch's attention on contiguous keys with an explicit mask."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from seesaw.ops import attention_plan, paged_attention
from seesaw.ops.attention_plan import plan_attention
from seesaw.plan import attention_workspace
from seesaw.plan.attention_workspace import AttentionShape, workspace_bytes


@pytest.fixture(params=["kernels", "torch"])
def backend(request: pytest.FixtureRequest) -> None:
    """With the C++ kernels where they are built, and as where they are not."""
    if request.param == "torch":
        request.getfixturevalue("plain_torch")


class Batch(NamedTuple):
    """Rows with their keys and values, not yet in a pool."""

    rows: list[tuple[int, int]]
    q: list[torch.Tensor]
    k: list[torch.Tensor]
    v: list[torch.Tensor]


def make_batch(
    rows: list[tuple[int, int]], heads: int, kv_heads: int, size: int, dtype: torch.dtype
) -> Batch:
    def draw(count: int, num_heads: int) -> torch.Tensor:
        return torch.randn(count, num_heads, size).to(dtype)

    return Batch(
        rows,
        [draw(queries, heads) for queries, _ in rows],
        [draw(seq_len, kv_heads) for _, seq_len in rows],
        [draw(seq_len, kv_heads) for _, seq_len in rows],
    )


def dense(batch: Batch, sm_scale: float, window: int | None) -> torch.Tensor:
    out = []
    for (queries, seq_len), q, k, v in zip(*batch, strict=True):
        mask = torch.ones(queries, seq_len, dtype=torch.bool).tril(seq_len - queries)
        if window is not None:
            mask &= torch.ones_like(mask).triu(seq_len - queries - window + 1)
        group = q.shape[1] // k.shape[1]
        k, v = (x.double().repeat_interleave(group, 1).transpose(0, 1) for x in (k, v))
        o = F.scaled_dot_product_attention(
            q.double().transpose(0, 1), k, v, attn_mask=mask, scale=sm_scale
        )
        out.append(o.transpose(0, 1).to(q.dtype))
    return torch.cat(out)


LAYOUTS = ("seesaw", "block_token_head", "kv_first", "head_major_padded")


def empty_pool(
    layout: str, blocks: int, block_size: int, kv_heads: int, size: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """k_cache and v_cache views of pools as engines lay them out, filled with NaN."""
    nan = float("nan")
    if layout == "seesaw":
        pool = torch.full((blocks, kv_heads, 2, block_size, size), nan, dtype=dtype)
        return pool[:, :, 0].transpose(1, 2), pool[:, :, 1].transpose(1, 2)
    if layout == "block_token_head":  # vLLM with FlashAttention
        pool = torch.full((2, blocks, block_size, kv_heads, size), nan, dtype=dtype)
        return pool[0], pool[1]
    if layout == "kv_first":  # FlashInfer NHD
        pool = torch.full((blocks, 2, block_size, kv_heads, size), nan, dtype=dtype)
        return pool[:, 0], pool[:, 1]
    # head-major with a gap after each tile, so that tiles are no multiples of each other
    pool = torch.full((blocks, kv_heads, 2, block_size * size + 7), nan, dtype=dtype)
    views = pool[..., : block_size * size].unflatten(-1, (block_size, size))
    return views[:, :, 0].transpose(1, 2), views[:, :, 1].transpose(1, 2)


def run(
    batch: Batch, layout: str, block_size: int, window: int | None, sm_scale: float
) -> torch.Tensor:
    counts = [-(-seq_len // block_size) for _, seq_len in batch.rows]
    kv_heads, size = batch.k[0].shape[1:]
    blocks = sum(counts) + 2
    k_cache, v_cache = empty_pool(layout, blocks, block_size, kv_heads, size, batch.q[0].dtype)
    order = torch.randperm(blocks).tolist()
    table = torch.full((len(counts), max(counts) + 1), order.pop(), dtype=torch.int32)
    cu_seqlens = [0]
    for row, count in enumerate(counts):
        for block in range(count):
            table[row, block] = order.pop()
            here = slice(block * block_size, (block + 1) * block_size)
            length = len(batch.k[row][here])
            k_cache[table[row, block], :length] = batch.k[row][here]
            v_cache[table[row, block], :length] = batch.v[row][here]
        cu_seqlens.append(cu_seqlens[-1] + batch.rows[row][0])
    seq_lens = [seq_len for _, seq_len in batch.rows]
    return paged_attention(
        torch.cat(batch.q),
        k_cache,
        v_cache,
        table,
        cu_seqlens,
        seq_lens,
        sm_scale=sm_scale,
        sliding_window=window,
    )


def random_rows(count: int, longest: int) -> list[tuple[int, int]]:
    rows = []
    for _ in range(count):
        seq_len = random.randint(1, longest)
        rows.append((random.choice((1, 1, seq_len, random.randint(1, seq_len))), seq_len))
    return rows


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("window", [None, 1, 13, 100])
def test_mixed_rows_in_any_pool(layout: str, window: int | None, backend: None) -> None:
    batch = make_batch(random_rows(12, 150), 6, 2, 64, torch.float32)
    got = run(batch, layout, 16, window, 0.2)
    torch.testing.assert_close(got, dense(batch, 0.2, window), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("size", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 7, 8])
def test_head_sizes_and_groups(size: int, group: int, backend: None) -> None:
    block_size = random.choice((16, 32, 64, 128, 256))
    window = random.choice((None, 30))
    batch = make_batch(random_rows(6, 80), 2 * group, 2, size, torch.float32)
    got = run(batch, "seesaw", block_size, window, size**-0.5)
    torch.testing.assert_close(got, dense(batch, size**-0.5, window), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_precision(dtype: torch.dtype, layout: str, backend: None) -> None:
    batch = make_batch(random_rows(10, 200), 9, 3, 64, dtype)
    got = run(batch, layout, 32, None, 0.125)
    torch.testing.assert_close(got, dense(batch, 0.125, None), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("window", [None, 25])
@pytest.mark.parametrize("heads", [4, 12])
def test_tight_memory_changes_nothing(
    heads: int, window: int | None, monkeypatch: pytest.MonkeyPatch, plain_torch: None
) -> None:
    """With bounds so small that heads and queries go one after another."""
    for module in (attention_plan, attention_workspace):
        monkeypatch.setattr(module, "GATHER_BYTES", 20_000)
        monkeypatch.setattr(module, "SCORE_BYTES", 1)
    batch = make_batch(random_rows(8, 120), heads, 4, 64, torch.float32)
    got = run(batch, "seesaw", 16, window, 0.125)
    torch.testing.assert_close(got, dense(batch, 0.125, window), atol=2e-5, rtol=2e-5)


def plan_of(rows: list[tuple[int, int]], shape: AttentionShape) -> attention_plan.AttentionPlan:
    width = max(-(-seq_len // shape.block_size) for _, seq_len in rows)
    table = torch.arange(len(rows) * width, dtype=torch.int32).view(len(rows), width)
    cu_seqlens = [0]
    for queries, _ in rows:
        cu_seqlens.append(cu_seqlens[-1] + queries)
    return plan_attention(table, cu_seqlens, [n for _, n in rows], shape, torch.float32)


def test_padding_and_memory_are_bounded() -> None:
    shape = AttentionShape(8, 2, 64, 16, 2)
    rows = random_rows(300, 3000)
    groups = plan_of(rows, shape).groups
    covered = torch.cat(
        [g.token_index if g.real is None else g.token_index[g.real] for g in groups]
    )
    assert torch.equal(covered.sort().values, torch.arange(sum(q for q, _ in rows)))
    for group in groups:
        num_rows, blocks = group.block_ids_BP.shape
        gathered = shape.kv_bytes(num_rows * blocks * shape.block_size, group.kv_heads_per_pass)
        assert gathered <= max(attention_plan.GATHER_BYTES, shape.kv_bytes(3008, 1))
    decode_keys = sum(g.block_ids_BP.numel() for g in groups if g.decode) * 16
    needed = sum(n for q, n in rows if q == 1)
    assert decode_keys <= 1.25 * needed + 300 * 32


def test_short_and_long_chunks_are_not_padded_to_each_other() -> None:
    shape = AttentionShape(8, 2, 64, 32, 2)
    rows = [(2, 2)] * 500 + [(32, 32)] * 3
    padded = sum(len(group.token_index) for group in plan_of(rows, shape).groups)
    assert padded <= 1.25 * (2 * 500 + 32 * 3) + 2 * attention_plan.MAX_PADDING


def test_window_limits_what_is_gathered() -> None:
    shape = AttentionShape(8, 2, 64, 16, 2, sliding_window=40)
    (decode,) = plan_of([(1, 5000), (1, 5001)], shape).groups
    assert decode.block_ids_BP.shape[1] * 16 < 40 + 2 * 16
    (chunk,) = plan_of([(100, 5000)], shape).groups
    assert chunk.block_ids_BP.shape[1] * 16 < 140 + 2 * 16


def test_rows_of_like_length_share_calls() -> None:
    shape = AttentionShape(8, 2, 64, 32, 2)
    assert len(plan_of([(1, 200 + i) for i in range(32)], shape).groups) == 1
    assert len(plan_of([(30 + i, 30 + i) for i in range(16)], shape).groups) <= 2


def test_bound_grows_with_what_it_depends_on() -> None:
    shape = AttentionShape(8, 2, 64, 32, 2)
    small = workspace_bytes(shape, 256, 2048)
    assert workspace_bytes(shape, 4096, 2048) > small
    assert workspace_bytes(shape, 256, 2**22) > small
