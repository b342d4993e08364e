"""Ranks of a layout as threads of one process, joined in memory: fast, and the same each time.

`run_ranks` plays the ranks of one stage; `CutModel` is a decoder cut over all ranks of a layout.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from seesaw.families.spec import ModelSpec
from seesaw.kvcache.pool import KVCache
from seesaw.layers.comm import ALONE, Comm
from seesaw.layout import ParallelLayout, RankRanges, rank_ranges
from seesaw.layout.plain import PlainFormat
from seesaw.models.decoder import Decoder
from tests.models.harness import Rows

Result = TypeVar("Result")


class _Meeting:
    """Where the ranks of a stage put their tensors and wait for each other."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=60)
        self.tensors: list[torch.Tensor | None] = [None] * size


class ThreadComm:
    """A `Comm`; sums in order of rank."""

    def __init__(self, meeting: _Meeting, rank: int) -> None:
        self._meeting = meeting
        self.rank = rank
        self.size = len(meeting.tensors)

    def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        assert x.is_contiguous()
        meeting = self._meeting
        meeting.tensors[self.rank] = x
        meeting.barrier.wait()
        parts = [part.clone() for part in meeting.tensors if part is not None]
        assert {(part.shape, part.dtype) for part in parts} == {(x.shape, x.dtype)}
        meeting.barrier.wait()
        return parts

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        total, *parts = self.all_gather(x)
        for part in parts:
            total += part
        return x.copy_(total)  # as a library does: in place


def stage_comms(size: int) -> list[Comm]:
    if size == 1:
        return [ALONE]
    meeting = _Meeting(size)
    return [ThreadComm(meeting, rank) for rank in range(size)]


def run_ranks(comms: Sequence[Comm], task: Callable[[int], Result]) -> list[Result]:
    """`task(rank)` on a thread for each of `comms`; the first error that is not another's."""

    def run(rank: int) -> Result:
        try:
            with torch.inference_mode():
                return task(rank)
        except BaseException:
            comm = comms[rank]
            if isinstance(comm, ThreadComm):
                comm._meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(len(comms)) as threads:
        futures = [threads.submit(run, rank) for rank in range(len(comms))]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [future.result() for future in futures]


def slice_params(
    spec: ModelSpec, params: Mapping[str, torch.Tensor], ranges: RankRanges
) -> dict[str, torch.Tensor]:
    """What a rank holds of a whole model's parameters, and nothing else."""
    out = {}
    dtype = params["model.norm.weight"].dtype
    stored = PlainFormat(spec, dtype.itemsize)
    for param in stored.params:
        whole = params[param.name]
        assert whole.shape == param.shape, param.name
        if stored.holds(param, ranges):
            raw = whole.contiguous().view(-1).view(torch.uint8)
            runs = [raw[run.start : run.start + run.size] for run in stored.runs(param, ranges)]
            local = torch.cat(runs).view(dtype)
            out[param.name] = local.view(stored.local_shape(param, ranges))
    return out


class CutModel:
    """Decoders and KV pools of all ranks of `layout`, and rows that run through them.

    `rows` are the whole model's: their tables and their progress are used, not their pool.
    """

    def __init__(
        self,
        spec: ModelSpec,
        params: Mapping[str, torch.Tensor],
        layout: ParallelLayout,
        rows: Rows,
    ) -> None:
        self._layout, self._rows = layout, rows
        self._comms = stage_comms(layout.tp)
        self.decoders, self.pools = [], []
        for rank in range(layout.num_ranks):
            ranges = rank_ranges(layout, spec, rank)
            comm = self._comms[layout.coordinates(rank).tp]
            local = slice_params(spec, params, ranges)
            self.decoders.append(Decoder(spec, local, ranges, comm))
            blocks, block_size = rows.kv.num_blocks, rows.kv.block_size
            pool = KVCache.allocate(
                ranges.layers.size, blocks, ranges.kv_heads.size, block_size, spec.head_dim,
                rows.decoder.dtype, rows.decoder.device,
            )  # fmt: skip
            pool.pool.fill_(float("nan"))
            self.pools.append(pool)

    def step(self, counts: Sequence[int]) -> list[torch.Tensor]:
        """As `Rows.step`, stage after stage; the ranks' vocabulary put together."""
        inputs = self._rows.inputs(counts)
        layout = self._layout
        hidden: list[torch.Tensor] = []
        for stage in range(layout.pp):

            def run(
                tp: int, stage: int = stage, hidden: list[torch.Tensor] = hidden
            ) -> torch.Tensor:
                rank = stage * layout.tp + tp
                decoder = self.decoders[rank]
                x = decoder.embed(inputs.token_ids_T) if stage == 0 else hidden[tp]
                before = x.clone()
                out = decoder.run_layers(x, inputs, self.pools[rank], *decoder.ranges.layers)
                assert torch.equal(x, before), "run_layers changed what it was given"
                last = stage + 1 == layout.pp
                return decoder.logits(out, inputs.sample_index_S) if last else out

            hidden = run_ranks(self._comms, run)
            if stage + 1 < layout.pp:
                assert all(torch.equal(x, hidden[0]) for x in hidden), "ranks differ in bits"
        logits = torch.cat(hidden, dim=1)
        return list(logits.split([count for count in counts if count]))
