"""One device's share of a step: turns rows into tensors, runs the decoder, draws tokens.

A worker knows each request's tokens itself, drawn ones included, so a step may name positions whose
tokens the scheduler has not heard of yet. It decides nothing: which rows, blocks and requests is
the scheduler's business.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from seesaw.engine.sampler import SamplingState, draw
from seesaw.kvcache.pool import KVCache
from seesaw.models.decoder import Decoder
from seesaw.models.inputs import StepInputs
from seesaw.scheduler.output import Batch, ModelOutput, Row, SchedulerOutput


@dataclass(slots=True)
class _RequestState:
    tokens: list[int]
    sampling: SamplingState
    blocks: list[int] = field(default_factory=list)


class Worker:
    """Runs steps over `decoder` and `kv`, in order of `step_id`."""

    def __init__(self, decoder: Decoder, kv: KVCache, device: torch.device) -> None:
        self._decoder = decoder
        self._kv = kv
        self._device = device
        self._requests: dict[str, _RequestState] = {}

    @torch.inference_mode()
    def execute(self, step: SchedulerOutput) -> ModelOutput:
        """Run one step and return the drawn tokens, in the order of lanes and rows."""
        assert not step.reshard, "this worker has one layout"
        assert not step.stores and not step.loads, "this worker has no host tier"
        self._apply(step)
        output = ModelOutput(step.step_id, [])
        for lane in step.lanes:
            self._run_batch(lane, output)
        return output

    def _apply(self, step: SchedulerOutput) -> None:
        for request_id in step.finished:
            del self._requests[request_id]
        for request_id in step.preempted:
            self._requests[request_id].blocks.clear()
        for new in step.new_requests:
            self._requests[new.request_id] = _RequestState(
                list(new.prompt_token_ids), SamplingState(new)
            )
        for request_id, blocks in step.appended_blocks.items():
            self._requests[request_id].blocks.extend(blocks)
        if step.poison_blocks:
            self._kv.poison(step.poison_blocks)
        if step.block_copies:
            self._kv.copy_blocks(step.block_copies)

    def _run_batch(self, batch: Batch, output: ModelOutput) -> None:
        rows = batch.rows
        inputs = self._inputs(rows)
        decoder = self._decoder
        hidden = decoder.embed(inputs.token_ids_T)
        num_layers = decoder.spec.num_hidden_layers
        for row in rows:
            assert (row.layer_start, row.layer_stop) == (0, num_layers), f"{row}: partial layers"
        hidden = decoder.run_layers(hidden, inputs, self._kv, 0, num_layers)
        drawing = [self._requests[row.request_id] for row in rows if row.samples]
        if not drawing:
            return
        logits = decoder.logits(hidden, inputs.sample_index_S)
        tokens, logprobs = draw(logits, [state.sampling for state in drawing])
        for state, token in zip(drawing, tokens, strict=True):
            state.tokens.append(token)
        if logprobs is not None or output.logprobs is not None:
            earlier = output.logprobs or [None] * len(output.token_ids)
            output.logprobs = earlier + (logprobs or [None] * len(tokens))
        output.token_ids += tokens

    def _inputs(self, rows: list[Row]) -> StepInputs:
        size = self._kv.block_size
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        tables: list[list[int]] = []
        cu_seqlens, seq_lens, sample_index = [0], [], []
        for request_id, start, count, _, _, samples in rows:
            state = self._requests[request_id]
            end = start + count
            blocks = state.blocks
            if count == 1:
                token_ids.append(state.tokens[start])
                positions.append(start)
                slots.append(blocks[start // size] * size + start % size)
            else:
                token_ids += state.tokens[start:end]
                positions += range(start, end)
                slots += [blocks[p // size] * size + p % size for p in range(start, end)]
            assert len(token_ids) == cu_seqlens[-1] + count, (
                f"{request_id}: tokens up to {end} unknown"
            )
            tables.append(blocks[: -(-end // size)])
            cu_seqlens.append(len(token_ids))
            seq_lens.append(end)
            if samples:
                sample_index.append(len(token_ids) - 1)
        width = max(map(len, tables))
        device = self._device
        return StepInputs(
            token_ids_T=torch.tensor(token_ids, device=device),
            positions_T=torch.tensor(positions, device=device),
            slot_mapping_T=torch.tensor(slots, device=device),
            block_table_RP=torch.tensor(
                [table + [0] * (width - len(table)) for table in tables],
                dtype=torch.int32,
                device=device,
            ),
            cu_seqlens_q_list=cu_seqlens,
            seq_lens_list=seq_lens,
            sample_index_S=torch.tensor(sample_index, dtype=torch.int64, device=device),
        )
