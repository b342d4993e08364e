"""One rank's share of a step: makes tensors of rows, runs its layers, draws tokens, begins copies.

It knows each request's tokens itself, drawn ones included, so a step may name positions whose
tokens the scheduler has not heard of yet. It decides nothing: which rows, blocks, copies and layout
is the scheduler's business. Knows no processes.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from seesaw.engine.messages import StepReport
from seesaw.engine.profile import StepClock
from seesaw.engine.sampler import SamplingState, draw, draw_highest
from seesaw.kvcache.pool import KVCache
from seesaw.kvcache.transfer import KVTransfers
from seesaw.layers.comm import Comm
from seesaw.layout import Range, RankRanges
from seesaw.models.cpu_decoder import CpuDecoder
from seesaw.models.decoder import Decoder
from seesaw.models.inputs import StepInputs
from seesaw.scheduler.output import Batch, Load, Phase, Row, SchedulerOutput, Store
from seesaw.weights.hashes import param_hashes


class StageLink(Protocol):
    """Hands hidden states on between pipeline stages. Ranks count within the replica."""

    def send(self, tensor: torch.Tensor, to_rank: int) -> None:
        """Begin to send; `tensor` must not be changed any more."""
        ...

    def recv(self, shape: tuple[int, ...], dtype: torch.dtype, from_rank: int) -> torch.Tensor: ...


class PhaseWeights(Protocol):
    """The rank's weights, which are those of one phase at a time."""

    def switch(self, phase: Phase) -> dict[str, int]:
        """Make them those of `phase`; bytes by source."""
        ...


@dataclass(frozen=True, slots=True)
class RankPhase:
    """What a rank is in one layout. `previous` and `following` are the ranks of the stages before
    and after it; `stored_heads` the KV heads that it stores for those who share them."""

    ranges: RankRanges
    params: Mapping[str, torch.Tensor]
    decoder: Decoder | CpuDecoder
    kv: KVCache
    comm: Comm
    previous: int | None
    following: int | None
    stored_heads: Range


@dataclass(slots=True)
class _RequestState:
    tokens: list[int]
    sampling: SamplingState
    blocks: array[int] = field(default_factory=lambda: array("i"))

    def hear(self, start: int, tokens: list[int]) -> None:
        """Take in tokens from position `start` on, some of which may be known."""
        assert start <= len(self.tokens), f"tokens {len(self.tokens)} to {start} are unknown"
        for token in tokens[len(self.tokens) - start :]:
            self.tokens.append(token)
            self.sampling.add(token)


class ModelRunner:
    """Runs steps in order of `step_id`.

    `links` is needed where a layout has several stages, `transfers` where there is a host tier,
    `weights` where the layouts differ. `release`: what is to be closed with the runner, in order.
    """

    def __init__(
        self,
        rank: int,
        phases: Mapping[Phase, RankPhase],
        device: torch.device,
        *,
        links: StageLink | None = None,
        transfers: KVTransfers | None = None,
        weights: PhaseWeights | None = None,
        release: Sequence[Callable[[], None]] = (),
        profile: bool = False,
    ) -> None:
        self._rank = rank
        self._phases = phases
        self._device = device
        self._links = links
        self._transfers = transfers
        self._weights = weights
        self._release = release
        self._requests: dict[str, _RequestState] = {}
        self._waited_s = 0.0
        self._phase: Phase = next(iter(phases))
        self._clock = StepClock(profile, device)
        for phase in phases.values():
            phase.decoder.set_profiling(profile)

    @torch.inference_mode()
    def execute(self, step: SchedulerOutput) -> StepReport:
        """Run the rank's part of a step; waits for ranks that must run theirs first."""
        report = StepReport(rank=self._rank, step_id=step.step_id)
        clock = self._clock
        clock.begin()
        began_s = time.perf_counter()
        assert step.reshard == (step.phase != self._phase), f"step {step.step_id}: wrong phase"
        self._phase = step.phase
        if step.reshard and self._weights is not None:
            report.weight_bytes = self._weights.switch(step.phase)
            report.reshard_s = time.perf_counter() - began_s
            clock.mark("reshard")
        phase = self._phases[step.phase]
        if phase.following is None:
            report.token_ids = []
        self._apply(step, phase)
        for load in step.loads:
            self._load(load)
        self._waited_s = 0.0
        for lane in step.lanes:
            self._run_batch(lane, phase, report)
        for store in step.stores:
            self._store(store)
        clock.mark("stores and rest")
        report.parts = clock.end()
        total_s = time.perf_counter() - began_s
        report.busy_s = max(0.0, total_s - report.reshard_s - self._waited_s)
        return report

    def inspect(self) -> tuple[Phase, dict[str, str], int]:
        """(present phase, hashes of its parameters by name, bytes of weights and pools)."""
        held = {}
        for phase in self._phases.values():
            for tensor in (phase.kv.pool, *phase.params.values()):
                storage = tensor.untyped_storage()
                held[storage.data_ptr()] = storage.nbytes()
        return self._phase, param_hashes(self._phases[self._phase].params), sum(held.values())

    def close(self) -> None:
        """End copies, leave the group, drop weights and pools. Safe to call twice."""
        for release in self._release:
            release()
        self._release = ()
        self._phases = {}
        self._links = self._transfers = self._weights = None

    # -- state ------------------------------------------------------------------------------------

    def _apply(self, step: SchedulerOutput, phase: RankPhase) -> None:
        for request_id in step.finished:
            del self._requests[request_id]
        for request_id in step.preempted:
            self._requests[request_id].blocks = array("i")
        for new in step.new_requests:
            self._requests[new.request_id] = _RequestState(
                list(new.prompt_token_ids), SamplingState(new)
            )
        for request_id, blocks in step.appended_blocks.items():
            self._requests[request_id].blocks.extend(blocks)
        for request_id, (start, tokens) in step.known_tokens.items():
            self._requests[request_id].hear(start, tokens)
        if step.poison_blocks:
            phase.kv.poison(step.poison_blocks)
        if step.block_copies:
            phase.kv.copy_blocks(step.block_copies)

    def _load(self, load: Load) -> None:
        assert self._transfers is not None, "a load without a host tier"
        phase = self._phases["decode"]
        self._requests[load.request_id].blocks = array("i", load.blocks)
        self._transfers.load(
            load.transfer_id, phase.kv, phase.ranges.layers, phase.ranges.kv_heads,
            phase.ranges.kv_heads, load.blocks, load.tier_blocks, load.num_tokens,
        )  # fmt: skip

    def _store(self, store: Store) -> None:
        assert self._transfers is not None, "a store without a host tier"
        phase = self._phases[store.phase]
        self._requests[store.request_id].blocks = array("i")
        self._transfers.store(
            store.transfer_id, phase.kv, phase.ranges.layers, phase.stored_heads,
            phase.ranges.kv_heads, store.blocks, store.tier_blocks, store.num_tokens,
        )  # fmt: skip

    # -- rows -------------------------------------------------------------------------------------

    def _run_batch(self, batch: Batch, phase: RankPhase, report: StepReport) -> None:
        rows = batch.rows
        if not rows:
            return
        decoder, layers = phase.decoder, phase.ranges.layers
        num_layers = decoder.spec.num_hidden_layers
        for row in rows:
            assert (row.layer_start, row.layer_stop) == (0, num_layers), f"{row}: partial layers"
        inputs = self._inputs(rows, phase)
        self._clock.mark("inputs")
        if phase.previous is None:
            hidden = decoder.embed(inputs.token_ids_T)
        else:
            hidden = self._receive(len(inputs.positions_T), phase)
        is_last = phase.following is None
        hidden = decoder.run_layers(
            hidden, inputs, phase.kv, layers.start, layers.stop, only_sampled=is_last
        )
        self._clock.mark("decoder")
        if phase.following is not None:
            assert self._links is not None, "a stage without links"
            self._links.send(hidden, phase.following)
            self._clock.mark("hand-over")
            self._clock.split("decoder", decoder.take_profile())
            return
        drawing = [self._requests[row.request_id] for row in rows if row.samples]
        if drawing:
            self._draw(hidden, drawing, phase, report)
        self._clock.split("decoder", decoder.take_profile())

    def _receive(self, num_tokens: int, phase: RankPhase) -> torch.Tensor:
        assert self._links is not None, "a stage without links"
        assert phase.previous is not None, "the first stage receives nothing"
        began_s = time.perf_counter()
        decoder = phase.decoder
        hidden = self._links.recv(
            (num_tokens, decoder.spec.hidden_size), decoder.dtype, phase.previous
        )
        self._waited_s += time.perf_counter() - began_s
        self._clock.mark("waiting for a stage")
        return hidden

    def _draw(
        self,
        hidden_SH: torch.Tensor,
        drawing: list[_RequestState],
        phase: RankPhase,
        report: StepReport,
    ) -> None:
        assert report.token_ids is not None, "the last stage draws"
        decoder, comm = phase.decoder, phase.comm
        states = [state.sampling for state in drawing]
        every_S = torch.arange(len(states), device=self._device)
        logprobs = None
        if all(state.takes_the_highest for state in states):
            value_S, id_S = decoder.highest(hidden_SH, every_S)
            self._clock.mark("decoder")
            tokens = draw_highest(value_S, id_S, states, comm)
        else:
            logits = decoder.logits(hidden_SH, every_S)
            self._clock.mark("decoder")
            tokens, logprobs = draw(logits, states, comm, decoder.spec.vocab_size)
        for state, token in zip(drawing, tokens, strict=True):
            state.tokens.append(token)
        if logprobs is not None or report.logprobs is not None:
            earlier = report.logprobs or [None] * len(report.token_ids)
            report.logprobs = earlier + (logprobs or [None] * len(tokens))
        report.token_ids += tokens
        self._clock.mark("sampling")

    def _inputs(self, rows: list[Row], phase: RankPhase) -> StepInputs:
        size = phase.kv.block_size
        embeds = phase.previous is None
        token_ids, positions, slots, sample_index = array("q"), array("q"), array("q"), array("q")
        tables: list[array[int]] = []
        cu_seqlens, seq_lens = [0], []
        for request_id, start, count, _, _, samples in rows:
            state = self._requests[request_id]
            end = start + count
            table = state.blocks[: -(-end // size)]
            assert len(table) * size >= end, f"{request_id}: no block for token {end - 1}"
            if count == 1:
                positions.append(start)
                slots.append(table[-1] * size + start % size)
            else:
                positions.extend(range(start, end))
                for index in range(start // size, len(table)):
                    # slots and positions of a block's tokens differ by the same
                    base = (table[index] - index) * size
                    first, last = max(start, index * size), min(end, index * size + size)
                    slots.extend(range(base + first, base + last))
            if embeds:
                token_ids.extend(state.tokens[start:end])
                assert len(token_ids) == len(positions), f"{request_id}: tokens up to {end} unknown"
            tables.append(table)
            cu_seqlens.append(len(positions))
            seq_lens.append(end)
            if samples:
                sample_index.append(len(positions) - 1)
        return StepInputs(
            token_ids_T=self._tensor(token_ids),
            positions_T=self._tensor(positions),
            slot_mapping_T=self._tensor(slots),
            block_table_RP=self._tensor(_padded(tables)).view(len(rows), -1),
            cu_seqlens_q_list=cu_seqlens,
            seq_lens_list=seq_lens,
            sample_index_S=self._tensor(sample_index),
        )

    def _tensor(self, values: array[int]) -> torch.Tensor:
        """The same numbers; on the CPU in the same memory."""
        dtype = torch.int64 if values.typecode == "q" else torch.int32
        if not values:
            return torch.empty(0, dtype=dtype, device=self._device)
        return torch.frombuffer(values, dtype=dtype).to(self._device)


def _padded(tables: list[array[int]]) -> array[int]:
    """One after another, with zeros up to the longest."""
    width = max(map(len, tables))
    joined = array("i", bytes(4 * width * len(tables)))
    for row, table in enumerate(tables):
        joined[row * width : row * width + len(table)] = table
    return joined
