"""Decode steps as CUDA graphs: what a step of so many rows of one token hands to the GPU is
recorded once for each phase, and replayed with other rows in the same memory.

Rows are padded to a few sizes (`plan/graph_sizes`). The first step of a size runs unrecorded, since
kernels are compiled and loaded at their first launch, and so does the first after a change of
layout. Addresses of weights and pools of a phase stay, so graphs do too: when a phase begins again
its weights are where they were. Owns graphs, their results and the memory for both.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch

from seesaw.engine.input_batch import InputBuffers, RowArrays, latest
from seesaw.engine.messages import StepLimits
from seesaw.engine.rank_phase import RankPhase
from seesaw.log import get_logger
from seesaw.models.inputs import StepInputs
from seesaw.plan.graph_sizes import graph_size
from seesaw.scheduler.output import Phase
from seesaw.sizes import format_bytes

logger = get_logger(__name__)

# Shape letters: R rows, H hidden.

Launch = Callable[[], None]


class Recorder(Protocol):
    """Records what a function hands to the device."""

    def record(self, launch: Launch) -> Launch | None:
        """Call `launch` without anything of it being run; what is returned runs it, with what is
        then in the memory that it names. None = there is no memory for more."""
        ...


class CudaRecorder:
    """Graphs of one device, which share a pool of memory for what is alive within one of them:
    they must be run one after another. `limit_bytes` of device memory in all, measured."""

    def __init__(self, device: torch.device, limit_bytes: int) -> None:
        self._device = device
        self._limit_bytes = limit_bytes
        self._used_bytes = 0
        self._num_recorded = 0
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, launch: Launch) -> Launch | None:
        """On the current stream, which must not be the default one."""
        if self._used_bytes >= self._limit_bytes:
            return None
        free_bytes, _ = torch.cuda.mem_get_info(self._device)
        graph = torch.cuda.CUDAGraph()
        # Other threads page-lock and copy meanwhile: what they call is no part of the graph. A
        # collection here might free page-locked memory, which records an event on this stream.
        collects = gc.isenabled()
        gc.disable()
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            launch()
        except Exception as error:
            with contextlib.suppress(RuntimeError):  # that the graph is void is no news
                graph.capture_end()
            raise RuntimeError(
                f"a step could not be recorded as a CUDA graph: {error}. Use enforce_eager=True, "
                "which records none."
            ) from error
        finally:
            if collects:
                gc.enable()
        graph.capture_end()
        self._used_bytes += max(0, free_bytes - torch.cuda.mem_get_info(self._device)[0])
        self._num_recorded += 1
        if self._used_bytes >= self._limit_bytes:
            logger.info(
                "%d CUDA graphs take %s, the most that is set aside for them: steps of other sizes "
                "run without. Lower max_num_seqs for fewer sizes.",
                self._num_recorded,
                format_bytes(self._used_bytes),
            )
        return graph.replay


class DecodeGraphs:
    """Runs steps whose rows all have one token and sample, on ranks that have the whole depth of
    the model."""

    def __init__(
        self,
        recorder: Recorder,
        buffers: InputBuffers,
        limits: StepLimits,
        hidden_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._recorder = recorder
        self._buffers = buffers
        self._most_rows = limits.num_rows
        # Outside the graphs' pool, where the next one to run would use their memory again.
        self._hidden = torch.empty(limits.num_rows, hidden_size, dtype=dtype, device=device)
        self._value = torch.empty(limits.num_rows, dtype=torch.float32, device=device)
        self._id = torch.empty(limits.num_rows, dtype=torch.int64, device=device)
        self._launches: dict[tuple[Phase, int, bool], Launch] = {}
        self._replays: dict[tuple[Phase, int, bool], Launch] = {}

    def suits(self, rows: RowArrays, phase: RankPhase) -> bool:
        return phase.is_whole and phase.comm.recordable and rows.only_decodes

    def hidden(
        self, name: Phase, phase: RankPhase, rows: RowArrays, *, eager: bool
    ) -> torch.Tensor:
        """The last layer's output `[R, H]`. `eager`: without a graph."""
        self._run(name, phase, rows, greedy=False, eager=eager)
        return self._hidden[: len(rows.seq_lens)]

    def highest(
        self, name: Phase, phase: RankPhase, rows: RowArrays, *, eager: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Highest logit (float32) and its id (int64) of each row, as `Decoder.highest`."""
        self._run(name, phase, rows, greedy=True, eager=eager)
        count = len(rows.seq_lens)
        return self._value[:count], self._id[:count]

    def _run(
        self, name: Phase, phase: RankPhase, rows: RowArrays, *, greedy: bool, eager: bool
    ) -> None:
        size = graph_size(len(rows.seq_lens), self._most_rows)
        key = (name, size, greedy)
        self._buffers.upload_padded(rows, size)
        if key not in self._launches:
            inputs = self._buffers.padded(size)
            self._launches[key] = partial(self._launch, phase, inputs, greedy)
            eager = True
        launch = self._launches[key]
        if not eager and key not in self._replays:
            replay = self._recorder.record(launch)
            if replay is not None:
                self._replays[key] = replay
        if not eager:
            launch = self._replays.get(key, launch)
        launch()

    def _launch(self, phase: RankPhase, inputs: StepInputs, greedy: bool) -> None:
        """All of a step; nothing on the host may depend on its rows."""
        decoder, size = phase.decoder, len(inputs.positions_T)
        hidden_RH = decoder.embed(latest(inputs.token_ids_T, self._buffers.drawn))
        hidden_RH = decoder.run_layers(hidden_RH, inputs, phase.kv, *phase.ranges.layers)
        if not greedy:
            self._hidden[:size].copy_(hidden_RH)
            return
        value_R, id_R = decoder.highest(hidden_RH, inputs.sample_index_S)
        self._value[:size].copy_(value_R)
        self._id[:size].copy_(id_R)
