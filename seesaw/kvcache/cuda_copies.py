"""`StreamCopies` on a GPU, and the length of runs from which copy engines are the faster way over
its bus, measured when a process first needs it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from seesaw.cuda.batch_copy import Run, copy_runs
from seesaw.cuda.streams import CudaStream, now, streams
from seesaw.kvcache.copies import Report
from seesaw.kvcache.lane import Lane
from seesaw.kvcache.stream_copies import Direction, StreamCopies
from seesaw.log import get_logger
from seesaw.ops.kv_gather import kv_gather
from seesaw.ops.kv_scatter import kv_scatter
from seesaw.ops.triton_backend import on_triton
from seesaw.plan.workspace import KV_BATCH_BYTES, KV_SLOTS

RULE_BYTES = 28 << 10
"""Of a crossover that was not measured: about that of an H100."""
PROBED_BYTES = 16 << 20
PROBED_DTYPE = torch.bfloat16
PROBED_RUNS = tuple(1 << power for power in range(12, 19))  # 4 KiB to 256 KiB
REPEATS = 3

logger = get_logger(__name__)


class Crossover(NamedTuple):
    """Runs of the tier at least this long are carried by copy engines, shorter ones by kernels."""

    store_bytes: int = RULE_BYTES
    load_bytes: int = RULE_BYTES


class Times(NamedTuple):
    """Of the same bytes in runs of `run_bytes`, by kernel and by copy engine."""

    run_bytes: int
    kernel_s: float
    engine_s: float


def crossover_bytes(times: Sequence[Times]) -> int:
    """The shortest run from which on engines are never slower; above all where they always are."""
    found = 2 * max(one.run_bytes for one in times)
    for one in sorted(times, reverse=True):
        if one.engine_s > one.kernel_s:
            break
        found = one.run_bytes
    return found


def cuda_copies(report: Report, device: torch.device) -> StreamCopies:
    """Of `device`, whose tier is being page-locked."""
    own, crossover = streams(device), measure_crossover(device)

    def direction(store: bool, kernels: CudaStream, bus: CudaStream, limit: int) -> Direction:
        lane = Lane(store, device, kernels, bus, copy_runs, KV_SLOTS)
        return Direction(lane, KV_SLOTS, KV_BATCH_BYTES, limit)

    return StreamCopies(
        report,
        direction(True, own.gather, own.store, crossover.store_bytes),
        direction(False, own.scatter, own.load, crossover.load_bytes),
        lambda: now(device),
    )


def measure_crossover(device: torch.device) -> Crossover:
    """Of this GPU and its bus: some 16 MB each way, a few times. Once in a process. Where plain
    torch computes, no kernel reaches the host: all goes by copy engine."""
    if not on_triton(torch.empty(0, device=device)):
        return Crossover(0, 0)
    return _measure(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _measure(index: int) -> Crossover:
    device = torch.device("cuda", index)
    with torch.cuda.device(device), torch.inference_mode():
        found = Crossover(*(crossover_bytes(_times(device, store)) for store in (True, False)))
    logger.debug("%s: KV goes by copy engine from runs of %s bytes on", device, tuple(found))
    return found


def _times(device: torch.device, store: bool) -> list[Times]:
    own = streams(device)
    stream = own.store if store else own.load
    # of a type that pools have, whose numbers do not matter
    count = PROBED_BYTES // PROBED_DTYPE.itemsize
    host = torch.zeros(count, dtype=PROBED_DTYPE, pin_memory=device.type == "cuda")
    pool, staging = (torch.zeros(count, dtype=PROBED_DTYPE, device=device) for _ in range(2))
    move = kv_gather if store else kv_scatter

    def times(run_bytes: int) -> Times:
        count = PROBED_BYTES // run_bytes
        ids = torch.arange(count // 2, dtype=torch.int32, device=device)
        # blocks of one layer, one head, a run each for K and V
        shape = (1, count // 2, 1, 2, 1, run_bytes // PROBED_DTYPE.itemsize)
        blocks, aside = pool.view(shape), staging.view(shape).transpose(0, 1)
        there = host.view(shape).transpose(0, 1)
        ends = [
            (host.data_ptr() + at, staging.data_ptr() + at)
            for at in range(0, PROBED_BYTES, run_bytes)
        ]
        runs = [Run(*(end if store else end[::-1]), run_bytes) for end in ends]

        def by_kernel() -> None:
            move(blocks, there, ids, ids)

        def by_engine() -> None:
            if store:
                move(blocks, aside, ids, ids)
            copy_runs(runs)
            if not store:
                move(blocks, aside, ids, ids)

        return Times(run_bytes, _seconds(stream, by_kernel), _seconds(stream, by_engine))

    return [times(run_bytes) for run_bytes in PROBED_RUNS]


def _seconds(stream: CudaStream, work: Callable[[], None]) -> float:
    """The least of a few, after one that compiles what is to be compiled."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(REPEATS + 2)]  # type: ignore[no-untyped-call]

    def all_of_it() -> None:
        for mark in marks[:-1]:
            mark.record()
            work()
        marks[-1].record()

    stream.torch.wait_stream(torch.cuda.current_stream())
    stream.run(all_of_it)
    marks[-1].synchronize()
    return min(
        float(before.elapsed_time(after)) / 1e3 for before, after in itertools.pairwise(marks[1:])
    )
