"""What one rank measures of its device: the operations that the decoder runs, each as a case.

A case is something to run and what one run of it amounts to in the terms of `seesaw.plan`. Weights
are walked through, so that they come from memory as a model's do, not from a cache. Knows no clock
and no other rank.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F

from seesaw.engine.calibrate_model import LayerSizes, calibration_spec, random_params
from seesaw.kvcache.pool import KVCache
from seesaw.kvcache.tier import HostTier
from seesaw.kvcache.transfer import KVTransfers
from seesaw.layers.comm import ALONE
from seesaw.layers.row_parallel import row_parallel
from seesaw.layout.kv import PIECE_TOKENS, TierShape
from seesaw.layout.panels import PANEL
from seesaw.layout.ranges import Range
from seesaw.models.cpu_decoder import CpuDecoder
from seesaw.models.decoder import Decoder
from seesaw.models.inputs import StepInputs
from seesaw.ops.attention_plan import AttentionPlan, plan_attention
from seesaw.ops.device_rows import DeviceRows
from seesaw.ops.gated_activation import gated_activation
from seesaw.ops.kv_write import kv_write
from seesaw.ops.linear import linear
from seesaw.ops.native import native, usable
from seesaw.ops.paged_attention import paged_attention
from seesaw.ops.rms_norm import rms_norm
from seesaw.ops.rope import rope
from seesaw.ops.rope_kv_write import rope_kv_write
from seesaw.ops.triton_backend import on_triton
from seesaw.plan.attention_workspace import AttentionShape
from seesaw.plan.cost_model import HEAD_PASSES, MLP_PASSES, STREAM_PASSES
from seesaw.plan.workspace import COPY_THREADS

MATMUL_ROWS = (1, 4, 16, 64, 256, 1024, 2048)
DECODE_ROWS = ((1, 1024), (16, 48), (16, 512), (64, 48), (64, 256))
"""(rows, keys of each in the mean)."""
PREFILL_ROWS = ((16, 32, 32), (8, 128, 128), (2, 512, 512), (1, 1024, 2048))
"""(rows, queries, keys of each)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of what is measured. `walk_bytes`: of weights, on this rank; `tokens`: of element-wise
    operations."""

    walk_bytes: int
    copy_bytes: int
    layer: LayerSizes = field(default_factory=LayerSizes)
    num_layers: int = 8
    block_size: int = 32
    tokens: int = 2048
    matmul_rows: Sequence[int] = MATMUL_ROWS
    decode_rows: Sequence[Sequence[int]] = DECODE_ROWS
    prefill_rows: Sequence[Sequence[int]] = PREFILL_ROWS


@dataclass(frozen=True, slots=True)
class Case:
    """`run` does `amount` of what `name` counts (operations, bytes, layers). `keeps_busy`: all
    threads compute all the time, if they get to. `takes_part` is False on a rank that has nobody
    to exchange with: its seconds are no sample."""

    name: str
    amount: float
    run: Callable[[], object]
    keeps_busy: bool = False
    takes_part: bool = True


def runs_kernels(device: torch.device, dtypes: Sequence[torch.dtype]) -> bool:
    """Whether the engine would compute with seesaw's own kernels for CPUs in all of `dtypes`."""
    is_native = native() is not None
    return is_native and all(usable(torch.empty(0, dtype=x, device=device)) for x in dtypes)


def device_cases(
    sizes: Sizes, device: torch.device, dtypes: list[torch.dtype], close: list[Callable[[], None]]
) -> Iterator[Case]:
    """All of one device. `close` collects what is to be called when they are done with."""
    kernels = runs_kernels(device, dtypes)
    for dtype in dtypes:
        yield from _matmuls(sizes, device, dtype, kernels)
    dtype = dtypes[0]
    yield from _attention(sizes, device, dtype, kernels)
    yield _elementwise(sizes, device, dtype, kernels)
    yield from _layers(sizes, device, dtype, kernels)
    yield from _copies(sizes, device, dtype, close)


def _matmuls(
    sizes: Sizes, device: torch.device, dtype: torch.dtype, kernels: bool
) -> Iterator[Case]:
    inner, hidden = sizes.layer.inner, sizes.layer.hidden
    name = str(dtype).removeprefix("torch.")
    count = max(1, sizes.walk_bytes // (inner * hidden * dtype.itemsize))
    drawn = _random((count, inner, hidden), device, dtype)
    if kernels:
        columns, rows_of = _walk_panels(drawn), _walk_panels(drawn.view(count, hidden, inner))
    else:
        columns, rows_of = _walk_columns(drawn), _walk_rows(drawn)
    for rows in sizes.matmul_rows:
        x_TH, x_TN = _random((rows, hidden), device, dtype), _random((rows, inner), device, dtype)
        flops = 2.0 * rows * inner * hidden
        large = rows == max(sizes.matmul_rows)
        yield Case(f"matmul/{name}/{rows}", flops, partial(columns, x_TH), keeps_busy=large)
        yield Case(f"row_matmul/{name}/{rows}", flops, partial(rows_of, x_TN))


_Walk = Callable[[torch.Tensor], object]


def _walk_columns(weights: torch.Tensor) -> _Walk:
    """Multiplies rows with one matrix after another, `[out, in]` each."""
    walk = itertools.cycle(weights)
    return lambda x: F.linear(x, next(walk))


def _walk_rows(weights: torch.Tensor) -> _Walk:
    """The same, `[in, out]` each."""
    walk = itertools.cycle(weights)
    return lambda x: row_parallel(x, next(walk), None, ALONE)


def _walk_panels(weights: torch.Tensor) -> _Walk:
    """The same with seesaw's own kernel, `[out, in]` each; numbers drawn at random are panels as
    they are."""
    count, columns, depth = weights.shape
    walk = itertools.cycle(weights.view(count, -1, depth, PANEL))
    return lambda x: linear(x, next(walk), columns)


def _attention(
    sizes: Sizes, device: torch.device, dtype: torch.dtype, kernels: bool
) -> Iterator[Case]:
    for rows, keys in sizes.decode_rows:
        run = _attend(sizes, device, dtype, kernels, 1, _lengths(rows, keys, sizes.block_size))
        yield Case(f"decode/{rows}/{keys}", float(rows * keys), run)
    for rows, queries, keys in sizes.prefill_rows:
        run = _attend(sizes, device, dtype, kernels, queries, [keys] * rows)
        pairs = rows * (queries * keys - queries * (queries - 1) // 2)
        yield Case(
            # Pairs of a query and a key over keys, as the planner has them.
            f"prefill/{pairs / (rows * keys):g}", 4.0 * pairs * sizes.layer.query_columns, run
        )  # fmt: skip


def _lengths(rows: int, mean: int, block_size: int) -> list[int]:
    """Keys of rows that decode, `mean` in the mean: their last blocks are as full as it happens."""
    found = [mean + index * 7 % block_size - block_size // 2 for index in range(rows)]
    found[0] += rows * mean - sum(found)
    return found


def _attend(
    sizes: Sizes, device: torch.device, dtype: torch.dtype, kernels: bool, queries: int,
    seq_lens: list[int],
) -> Callable[[], object]:  # fmt: skip
    """Attention of rows of `queries` queries, planned as a step's."""
    layer, rows = sizes.layer, len(seq_lens)
    kv, table = _cache(sizes, device, dtype, rows, max(seq_lens))
    q_THD = _random((rows * queries, layer.kv_heads * layer.group, layer.head_dim), device, dtype)
    cu_seqlens = list(range(0, rows * queries + 1, queries))
    plan = device_rows = None
    if on_triton(q_THD):
        device_rows = DeviceRows.of(cu_seqlens, seq_lens, device)
    elif not kernels:
        plan = _attention_plan(sizes, device, table, cu_seqlens, seq_lens, dtype)
    layers = itertools.cycle(range(kv.pool.shape[0]))

    def run() -> object:
        index = next(layers)
        return paged_attention(
            q_THD, kv.k_cache(index), kv.v_cache(index), table, cu_seqlens, seq_lens,
            sm_scale=layer.head_dim**-0.5, plan=plan, device_rows=device_rows,
            panels=_in_panels(sizes, kernels),
        )  # fmt: skip

    return run


def _attention_plan(
    sizes: Sizes, device: torch.device, table: torch.Tensor, cu_seqlens: list[int],
    seq_lens: list[int], dtype: torch.dtype,
) -> AttentionPlan:  # fmt: skip
    layer = sizes.layer
    shape = AttentionShape(
        num_heads=layer.kv_heads * layer.group,
        num_kv_heads=layer.kv_heads,
        head_dim=layer.head_dim,
        block_size=sizes.block_size,
        element_bytes=dtype.itemsize,
        unfused=device.type == "cuda",
    )
    return plan_attention(table, cu_seqlens, seq_lens, shape, dtype)


def _in_panels(sizes: Sizes, kernels: bool) -> bool:
    """Whether an engine's pool would be; numbers drawn at random fit either."""
    return kernels and sizes.block_size % PIECE_TOKENS == 0


def _cache(
    sizes: Sizes, device: torch.device, dtype: torch.dtype, rows: int, keys: int
) -> tuple[KVCache, torch.Tensor]:
    """A pool with blocks for `rows` rows of `keys` keys, in as many layers as make it larger than
    the caches (at most 16), and a table that gives blocks out in no order."""
    per_row = -(-keys // sizes.block_size)
    blocks = rows * per_row
    layer_bytes = blocks * sizes.block_size * sizes.layer.kv_columns * dtype.itemsize
    kv = KVCache.allocate(
        max(1, min(16, sizes.walk_bytes // (2 * layer_bytes))), blocks, sizes.layer.kv_heads,
        sizes.block_size, sizes.layer.head_dim, dtype, device,
    )  # fmt: skip
    kv.pool.normal_()
    table = torch.randperm(blocks, device=device).to(torch.int32).view(rows, per_row)
    return kv, table


def _elementwise(sizes: Sizes, device: torch.device, dtype: torch.dtype, kernels: bool) -> Case:
    """All of a layer, as `CostModel` counts it; with `kernels` (those in C++) the activation is a
    part of the matrix product before it."""
    tokens, layer = sizes.tokens, sizes.layer
    group, size = layer.group, layer.head_dim
    weight = _random((layer.hidden,), device, dtype)
    x, residual = _random((2, tokens, layer.hidden), device, dtype)
    qkv = _random((tokens, layer.kv_heads, group + 2, size), device, dtype)
    gate_up = _random((tokens, 2 * layer.inner), device, dtype)
    cos, sin = _random((2, tokens, size // 2), device, dtype)
    kv, table = _cache(sizes, device, dtype, 1, tokens)
    within = torch.arange(tokens, device=device)
    slots = table[0, within // sizes.block_size].long() * sizes.block_size
    slots += within % sizes.block_size

    def run() -> None:
        rms_norm(x, weight, 1e-6, residual_NH=residual)
        if kernels:
            q, k = rope(qkv[:, :, :group], qkv[:, :, group], cos, sin)
            kv_write(k, qkv[:, :, -1], kv.k_cache(0), kv.v_cache(0), slots)
            q.flatten(1, 2)
        else:
            rope_kv_write(qkv, cos, sin, kv.k_cache(0), kv.v_cache(0), slots)
            qkv[:, :, :group].flatten(1, 2)
        rms_norm(x, weight, 1e-6, residual_NH=residual)
        if not kernels:
            gated_activation(gate_up, "silu")

    passes = STREAM_PASSES * layer.hidden + MLP_PASSES * layer.inner
    passes += HEAD_PASSES * (layer.query_columns + layer.kv_columns)
    return Case("elementwise", float(tokens * passes * dtype.itemsize), run)


def _layers(
    sizes: Sizes, device: torch.device, dtype: torch.dtype, kernels: bool
) -> Iterator[Case]:
    """One row through whole layers: one by one, which also pays each time for what is done once a
    step, and all in one go. What matrix products leave of it is what a layer costs at least, with
    caches as cold as weights leave them.
    """
    count, block_size = sizes.num_layers, sizes.block_size
    spec = calibration_spec(sizes.layer, count, str(dtype).removeprefix("torch."))
    params = random_params(spec, dtype, device, "panels" if kernels else "plain")
    decoder = CpuDecoder(spec, params) if kernels else Decoder(spec, params)
    kv = KVCache.allocate(
        count, 2, spec.num_key_value_heads, block_size, spec.head_dim, dtype, device,
        panels=_in_panels(sizes, kernels),
    )  # fmt: skip
    keys = block_size + 1
    inputs = StepInputs(
        token_ids_T=torch.zeros(1, dtype=torch.int64, device=device),
        positions_T=torch.tensor([keys - 1], device=device),
        slot_mapping_T=torch.tensor([keys - 1], device=device),
        block_table_RP=torch.tensor([[0, 1]], dtype=torch.int32, device=device),
        cu_seqlens_q_list=[0, 1],
        seq_lens_list=[keys],
        sample_index_S=torch.zeros(1, dtype=torch.int64, device=device),
        rows=DeviceRows.of([0, 1], [keys], device),
    )
    hidden = decoder.embed(inputs.token_ids_T)

    def one_by_one() -> None:
        for layer in range(count):
            decoder.run_layers(hidden, inputs, kv, layer, layer + 1)

    yield Case("layers/one_by_one", float(count), one_by_one)
    yield Case(
        "layers/in_one_go", float(count), lambda: decoder.run_layers(hidden, inputs, kv, 0, count)
    )


def _copies(
    sizes: Sizes, device: torch.device, dtype: torch.dtype, close: list[Callable[[], None]]
) -> Iterator[Case]:
    """KV to the host tier and back by the engine's own copies, and a plain copy on the device."""
    layers, heads = Range(0, 8), Range(0, sizes.layer.kv_heads)
    tier_tokens, size = 2 * sizes.block_size, sizes.layer.head_dim
    token_bytes = layers.size * sizes.layer.kv_columns * dtype.itemsize
    count = max(1, sizes.copy_bytes // (token_bytes * tier_tokens))
    shape = TierShape(count, heads.size, layers.size, tier_tokens, size, dtype.itemsize)
    tier = HostTier.create(shape)
    tier.commit(count)
    kv = KVCache.allocate(layers.size, 2 * count, heads.size, sizes.block_size, size, dtype, device)
    kv.pool.normal_()
    transfers = KVTransfers(tier, lambda *done: None, device, COPY_THREADS)
    close += [transfers.close, tier.close]
    numbers = itertools.count()

    def move(begin: Callable[..., None]) -> None:
        begin(
            next(numbers), kv, layers, heads, heads, range(2 * count), range(count),
            count * tier_tokens,
        )  # fmt: skip
        transfers.drain()

    yield Case("store", float(shape.nbytes), lambda: move(transfers.store))
    yield Case("load", float(shape.nbytes), lambda: move(transfers.load))
    source, target = torch.zeros((2, max(1, sizes.copy_bytes)), dtype=torch.uint8, device=device)
    yield Case("copy", float(len(source)), lambda: target.copy_(source))


def _random(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Normal numbers; the same in all entries of the first of three dims or more, since drawing
    all would take longer than measuring."""
    if len(shape) < 3:
        return torch.randn(shape, device=device).to(dtype)
    return torch.randn(shape[1:], device=device).to(dtype).expand(shape).contiguous()
