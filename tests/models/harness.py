"""Runs a decoder over rows of tokens without an engine: hands out blocks, makes StepInputs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from seesaw.families.spec import ModelSpec
from seesaw.kvcache.pool import KVCache
from seesaw.layout import ParallelLayout, RankRanges, rank_ranges
from seesaw.models.cpu_decoder import CpuDecoder
from seesaw.models.decoder import Decoder
from seesaw.models.inputs import StepInputs


class Rows:
    """Some sequences in one pool, with blocks in random order, grown a step at a time.

    What the pool holds before it is written is NaN, so a stray read shows.
    """

    def __init__(
        self,
        decoder: Decoder | CpuDecoder,
        sequences: Sequence[torch.Tensor],
        block_size: int,
        *,
        panels: bool = False,
    ) -> None:
        self.decoder, self.sequences = decoder, sequences
        spec, ranges, device = decoder.spec, decoder.ranges, decoder.device
        counts = [-(-len(sequence) // block_size) for sequence in sequences]
        self.kv = KVCache.allocate(
            ranges.layers.size,
            sum(counts) + 1,
            ranges.kv_heads.size,
            block_size,
            spec.head_dim,
            decoder.dtype,
            device,
            panels,
        )
        self.kv.pool.fill_(float("nan"))
        order = (torch.randperm(sum(counts)) + 1).tolist()
        self.tables = [[order.pop() for _ in range(count)] for count in counts]
        self.done = [0] * len(sequences)

    @torch.inference_mode()
    def step(self, counts: Sequence[int], cuts: Sequence[int] = ()) -> list[torch.Tensor]:
        """Logits `[count, V]` of the next `counts[r]` tokens of each row, the layers run in pieces
        that end at `cuts`. Rows with count 0 are left out.
        """
        inputs = self.inputs(counts)
        decoder = self.decoder
        hidden = decoder.embed(inputs.token_ids_T)
        bounds = [0, *cuts, decoder.spec.num_hidden_layers]
        for start, stop in itertools.pairwise(bounds):
            hidden = decoder.run_layers(hidden, inputs, self.kv, start, stop)
        logits = decoder.logits(hidden, inputs.sample_index_S)
        return list(logits.split([count for count in counts if count]))

    def inputs(self, counts: Sequence[int]) -> StepInputs:
        size, device = self.kv.block_size, self.decoder.device
        tokens, positions, slots, tables = [], [], [], []
        cu_seqlens, seq_lens = [0], []
        for row, count in enumerate(counts):
            if count == 0:
                continue
            start = self.done[row]
            at = torch.arange(start, start + count)
            table = torch.tensor(self.tables[row])
            tokens.append(self.sequences[row][at])
            positions.append(at)
            slots.append(table[at // size] * size + at % size)
            tables.append(self.tables[row][: -(-(start + count) // size)])
            cu_seqlens.append(cu_seqlens[-1] + count)
            seq_lens.append(start + count)
            self.done[row] += count
        width = max(map(len, tables))
        padded = [table + [0] * (width - len(table)) for table in tables]
        return StepInputs(
            token_ids_T=torch.cat(tokens).to(device),
            positions_T=torch.cat(positions).to(device),
            slot_mapping_T=torch.cat(slots).to(device),
            block_table_RP=torch.tensor(padded, dtype=torch.int32, device=device),
            cu_seqlens_q_list=cu_seqlens,
            seq_lens_list=seq_lens,
            sample_index_S=torch.arange(cu_seqlens[-1], device=device),
        )


def random_params(
    spec: ModelSpec,
    dtype: torch.dtype,
    device: str = "cpu",
    scale: float = 1.0,
    ranges: RankRanges | None = None,
) -> dict[str, torch.Tensor]:
    """Parameters of `spec` as the decoder takes them, of one rank where `ranges` are given;
    matrices are scaled so that values keep their size."""
    ranges = ranges or rank_ranges(ParallelLayout(), spec, 0)
    hidden, inner, size = spec.hidden_size, ranges.mlp.size, spec.head_dim
    heads, kv_heads = ranges.query_heads.size, ranges.kv_heads.size
    embedding = (ranges.vocab.size, hidden)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": embedding}
    norms = ["model.norm.weight"]
    for layer in range(*ranges.layers):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "self_attn.qkv_proj.weight"] = ((heads + 2 * kv_heads) * size, hidden)
        shapes[prefix + "self_attn.o_proj.weight"] = (heads * size, hidden)
        if spec.layers[layer].sparse:
            held, wide = ranges.experts.size, spec.moe_intermediate_size
            shapes[prefix + "mlp.gate.weight"] = (spec.num_experts, hidden)
            shapes[prefix + "mlp.experts.gate_up_proj.weight"] = (held, 2 * wide, hidden)
            shapes[prefix + "mlp.experts.down_proj.weight"] = (held, wide, hidden)
        else:
            shapes[prefix + "mlp.gate_up_proj.weight"] = (2 * inner, hidden)
            shapes[prefix + "mlp.down_proj.weight"] = (inner, hidden)
        norms += [prefix + "input_layernorm.weight", prefix + "post_attention_layernorm.weight"]
    inputs = {
        name: shape[-2 if name.endswith(("o_proj.weight", "down_proj.weight")) else -1]
        for name, shape in shapes.items()
    }
    params = {
        name: (torch.randn(shape) * scale * inputs[name] ** -0.5).to(device, dtype)
        for name, shape in shapes.items()
    }
    params |= {name: torch.ones(hidden, dtype=dtype, device=device) for name in norms}
    return params | {"lm_head.weight": params["model.embed_tokens.weight"]}
