"""One op of the registry, one case: how long a call takes, and which share of what this machine can
do that is. The limits are measured beside each case, as memory speed drifts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch

from seesaw.measure.limits import CACHES_IN_BUFFER, LimitsProbe, last_cache_bytes
from seesaw.measure.timer import BATCHES, calls_per_batch
from seesaw.ops import OPS
from seesaw.ops.registry import Case

LEAST_CACHE_BYTES = 32 * 2**20
MOST_COPIES = 256

Row = tuple[str, dict[str, Any]]


def bench_op(
    benchmark: Any, probe: LimitsProbe, name: str, case: Case, dtype: torch.dtype, *, cold: bool
) -> Row:
    """Times the op by pytest-benchmark; figures go to its extra_info and are returned for the
    table.

    `cold`: calls go round inputs that are larger together than the caches, as weights and KV are
    between two steps; else the same input, as activations that were just written.
    """
    cost = OPS[name].cost(case, dtype)
    call = _calls(name, case, dtype, _copies(cost.num_bytes) if cold else 1)
    benchmark.group = name
    benchmark.pedantic(call, rounds=BATCHES, iterations=calls_per_batch(call))
    kind = str(dtype).removeprefix("torch.")
    label = benchmark.name.removeprefix("test_")
    benchmark.extra_info.update(case=dict(case), dtype=kind)
    if benchmark.stats is None:  # --benchmark-disable
        return label, {}
    seconds = benchmark.stats.stats.min
    limits = probe.measure()
    figures = {
        "best_s": seconds,
        "gflop_per_s": cost.flops / seconds / 1e9,
        "gb_per_s": cost.num_bytes / seconds / 1e9,
        "of_arithmetic": cost.flops / seconds / limits.flops(kind),
        "of_memory": cost.num_bytes / seconds / limits.read_bytes_per_s,
        "of_bound": limits.bound_s(cost.num_bytes, cost.flops, kind) / seconds,
        "limits": dict(limits.figures()),
    }
    benchmark.extra_info.update(figures)
    return label, figures


def _calls(name: str, case: Case, dtype: torch.dtype, copies: int) -> Callable[[], object]:
    op = OPS[name]
    generator = torch.Generator().manual_seed(0)
    inputs = itertools.cycle([op.make_inputs(generator, case, dtype) for _ in range(copies)])
    return lambda: op.function(**next(inputs))


def _copies(num_bytes: int) -> int:
    """So many that one has left the caches when its turn comes again."""
    cache_bytes = max(LEAST_CACHE_BYTES, last_cache_bytes())
    return max(2, min(MOST_COPIES, math.ceil(CACHES_IN_BUFFER * cache_bytes / max(1, num_bytes))))


def table(rows: list[Row]) -> list[str]:
    width = min(60, max(len(label) for label, _ in rows))
    lines = [
        f"{'':<{width}} {'us':>9} {'GFLOP/s':>8} {'peak':>5} {'GB/s':>6} {'read':>5} {'bound':>6}"
    ]
    for label, figures in rows:
        lines.append(
            f"{label[:width]:<{width}} {figures['best_s'] * 1e6:9.1f} "
            f"{figures['gflop_per_s']:8.1f} {figures['of_arithmetic']:5.0%} "
            f"{figures['gb_per_s']:6.1f} {figures['of_memory']:5.0%} {figures['of_bound']:6.0%}"
        )
    limits = [figures["limits"] for _, figures in rows]
    reads = [one["read_bytes_per_s"] / 1e9 for one in limits]
    peaks = [one["bfloat16_flops"] / 1e9 for one in limits]
    return [
        *lines,
        "peak, read, bound: shares of what this machine computes from registers, of what it reads",
        "from memory (what lies in caches reads faster), and of the slower of the two",
        f"limits meanwhile: {min(reads):.1f} to {max(reads):.1f} GB/s, {min(peaks):,.0f} to "
        f"{max(peaks):,.0f} GFLOP/s in bfloat16 ({limits[0]['isa']}, "
        f"{limits[0]['num_threads']} threads)",
    ]
