"""What a step costs on the ranks of a replica: seconds by what takes them.

A roofline per group of operations, summed over the groups (Seesaw, MLSys 2025, table 3 and
equations 1 and 2), with what the paper's closed form leaves out: latency of small all-reduces,
sends between stages, launches, stages with embedding or head, uneven cuts, unequal devices.
Attention is counted as 4 * head_dim operations per (query head, query, key): the square of head_dim
in the paper's table 3 cannot be right. Of experts a step reads those that some token chose, and the
rank with most to do is waited for (`experts.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from seesaw.families.spec import ModelSpec
from seesaw.layout.parallel import ParallelLayout
from seesaw.layout.ranges import Range, RankRanges, rank_ranges
from seesaw.layout.reshard import Source
from seesaw.plan.experts import ExpertLoad, expert_load
from seesaw.plan.machine import Device, Links, Machine
from seesaw.plan.work import Work

ELEMENT_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}

# Elements that norms, residuals, rotation and activation read and write for each token of a layer,
# in units of what they pass over: the residual stream, q with k and v, and the MLP's inner columns;
# for each row of an expert, the residual stream again, gathered and added up.
STREAM_PASSES = 12
HEAD_PASSES = 6
MLP_PASSES = 3
EXPERT_PASSES = 4
SAMPLE_PASSES = 4
"""Over the logits of a row that draws."""

MOST_COUNTS = 10_000
"""Of tokens and rows of a step, that a model keeps the seconds of."""


@dataclass(slots=True)
class StageTime:
    """Seconds of one step on one stage, by what takes them; they add up."""

    weights_s: float = 0.0
    """Matrix products that wait for weights."""
    matmul_s: float = 0.0
    """Matrix products that do not."""
    attention_s: float = 0.0
    """Rows with several queries."""
    kv_s: float = 0.0
    """Rows with one query, which read their keys and values."""
    all_reduce_s: float = 0.0
    elementwise_s: float = 0.0
    overhead_s: float = 0.0

    @property
    def total_s(self) -> float:
        return (
            self.weights_s + self.matmul_s + self.attention_s + self.kv_s
            + self.all_reduce_s + self.elementwise_s + self.overhead_s
        )  # fmt: skip

    def add(self, other: StageTime, times: float = 1.0) -> None:
        for field in fields(self):
            name = field.name
            setattr(self, name, getattr(self, name) + times * getattr(other, name))


@dataclass(frozen=True, slots=True)
class _Rank:
    """Sizes of one rank's part, in elements; per token of the step where that matters."""

    device: Device
    num_layers: int
    is_first: bool
    is_last: bool
    column_elements: int
    """Of qkv, gate_up and routers of all its layers; per token 2 operations each."""
    row_elements: int
    """Of o_proj and down_proj of all its layers."""
    num_sparse_layers: int
    query_columns: int
    kv_columns: int
    """Of K and V together."""
    stream_elements: int
    """Passed over by elementwise operations in all its layers."""
    vocab_elements: int
    num_logits: int


class CostModel:
    """Costs of one replica in one layout. `layout` is the replica's (dp = 1); `machine` has its
    devices, rank by rank. `dtype` of what is computed; KV may take fewer bytes.
    """

    def __init__(
        self,
        spec: ModelSpec,
        machine: Machine,
        layout: ParallelLayout,
        dtype: str,
        *,
        kv_bytes: int | None = None,
    ) -> None:
        assert layout.dp == 1, f"costs are those of one replica, got {layout}"
        assert len(machine.devices) == layout.num_ranks, f"{layout} on {len(machine.devices)}"
        self.spec = spec
        self.layout = layout
        self.dtype = dtype
        self._links: Links = machine.links
        self._machine = machine
        self._element = ELEMENT_BYTES[dtype]
        self._kv = kv_bytes or self._element
        self._experts: ExpertLoad | None = None
        if spec.num_experts:
            self._experts = expert_load(spec.num_experts, spec.num_experts_per_tok, layout.tp)
        self._stages = [
            _distinct(
                _rank(spec, machine.devices[rank], rank_ranges(layout, spec, rank))
                for rank in range(stage * layout.tp, (stage + 1) * layout.tp)
            )
            for stage in range(layout.pp)
        ]
        # Stages with equal parts on equal devices are one kind, computed once.
        self._kinds = list(dict.fromkeys(self._stages))
        self._kind_of = [self._kinds.index(ranks) for ranks in self._stages]
        self._with_layers: dict[tuple[int, Range], list[_Rank]] = {}
        self._beside_attention: dict[tuple[int, ...], list[list[float]]] = {}

    # -- compute ---------------------------------------------------------------------------------

    def stage(self, stage: int, work: Work) -> StageTime:
        """Of the slowest rank of the stage, all-reduces with the others of it included."""
        ranks = self._stages[stage]
        if len(ranks) == 1:
            return self._rank_time(ranks[0], work)
        return max((self._rank_time(rank, work) for rank in ranks), key=lambda time: time.total_s)

    def stages_s(self, work: Work) -> list[float]:
        """Seconds of each stage.

        All but attention follows from four counts that repeat from step to step, so it is looked
        up: a simulation asks for hundreds of thousands of steps.
        """
        counts = (work.num_tokens, work.num_rows, work.num_sampled, work.num_decodes)
        beside = self._beside_attention.get(counts)
        if beside is None:
            if len(self._beside_attention) == MOST_COUNTS:
                self._beside_attention.clear()
            beside = self._beside_attention[counts] = [
                [self._time_beside_attention(rank, work).total_s for rank in ranks]
                for ranks in self._kinds
            ]
        seconds = [
            max(
                own_s + sum(self._attention_s(rank, work))
                for rank, own_s in zip(ranks, own, strict=True)
            )
            for ranks, own in zip(self._kinds, beside, strict=True)
        ]
        return [seconds[kind] for kind in self._kind_of]

    def stage_s(self, stage: int, layers: Range, work: Work) -> float:
        """Of the slowest rank of `stage`, if the stage had these layers of the model."""
        ranks = self._ranks_with(stage, layers)
        return max(self._rank_time(rank, work).total_s for rank in ranks)

    def stage_layers(self, stage: int) -> Range:
        return rank_ranges(self.layout, self.spec, stage * self.layout.tp).layers

    def stage_parts(self, stage: int, parts: Sequence[tuple[Range, Work]]) -> StageTime:
        """Of a step of which not all layers of the stage run the same rows: (layers, what their
        rows ask of each of them). The slowest rank's, all-reduces with the others included."""
        by_rank = zip(*(self._ranks_with(stage, layers) for layers, _ in parts), strict=True)
        times = []
        for ranks in by_rank:
            times.append(time := StageTime())
            for rank, (_, work) in zip(ranks, parts, strict=True):
                time.add(self._rank_time(rank, work))
            time.overhead_s -= (len(parts) - 1) * ranks[0].device.rates.step_overhead_s
        if not times:  # nothing on this stage
            return self._rank_time(self._stages[stage][0], Work())
        return max(times, key=lambda time: time.total_s)

    def expert_loads(self, layers: Range, work: Work) -> float:
        """How often an expert's weights are read in these layers, over all ranks, as expected."""
        spec = self.spec
        sparse = sum(layer.sparse for layer in spec.layers[slice(*layers)])
        if not sparse or not work.num_tokens:
            return 0.0
        load = expert_load(spec.num_experts, spec.num_experts_per_tok, 1)
        return sparse * load.touched(work.num_tokens, work.num_tokens - work.num_decodes)

    def _ranks_with(self, stage: int, layers: Range) -> list[_Rank]:
        """Those of `stage` that differ, if it had these layers."""
        found = self._with_layers.get((stage, layers))
        if found is None:
            tp, spec = self.layout.tp, self.spec
            alike: dict[_Rank, _Rank] = {}
            for rank in range(stage * tp, (stage + 1) * tp):
                device, held = self._machine.devices[rank], rank_ranges(self.layout, spec, rank)
                part = _rank(spec, device, replace(held, layers=layers))
                alike.setdefault(_rank(spec, device, held), part)
            found = self._with_layers[stage, layers] = list(alike.values())
        return found

    def send_s(self, num_tokens: int) -> float:
        """Hidden states from one stage to the next."""
        return self._links.send_s(num_tokens * self.spec.hidden_size * self._element)

    def _rank_time(self, rank: _Rank, work: Work) -> StageTime:
        time = self._time_beside_attention(rank, work)
        time.attention_s, time.kv_s = self._attention_s(rank, work)
        return time

    def _time_beside_attention(self, rank: _Rank, work: Work) -> StageTime:
        time = StageTime()
        rates = rank.device.rates
        if work.num_tokens == 0:
            return StageTime(overhead_s=rates.step_overhead_s)
        layers, tokens = rank.num_layers, work.num_tokens
        columns = rates.matmul_flops[self.dtype]
        rows = rates.row_matmul_flops.get(self.dtype, columns)
        self._product(time, rank, rank.column_elements, tokens, columns(tokens))
        self._product(time, rank, rank.row_elements, tokens, rows(tokens))
        if self._experts is not None and rank.num_sparse_layers:
            self._run_experts(time, rank, self._experts, work)
        stream = rank.stream_elements * self._element * tokens
        time.elementwise_s += stream / rates.elementwise_bytes_per_s
        tensor_bytes = tokens * self.spec.hidden_size * self._element
        tp = self.layout.tp
        time.all_reduce_s += 2 * layers * self._links.all_reduce_s(tp, tensor_bytes)
        time.overhead_s += layers * rates.layer_overhead_s
        time.overhead_s += rates.step_overhead_s + work.num_rows * rates.step_row_overhead_s
        if rank.is_first:
            time.elementwise_s += 2 * tensor_bytes / rates.elementwise_bytes_per_s
            time.all_reduce_s += self._links.all_reduce_s(tp, tensor_bytes)
        if rank.is_last and work.num_sampled:
            sampled = work.num_sampled
            self._product(time, rank, rank.vocab_elements, sampled, columns(sampled))
            logits = SAMPLE_PASSES * sampled * rank.num_logits * self._element
            time.elementwise_s += logits / rates.elementwise_bytes_per_s
            time.all_reduce_s += self._links.all_reduce_s(tp, 16 * sampled)
        return time

    def _product(
        self, time: StageTime, rank: _Rank, elements: float, tokens: float, flops: float
    ) -> None:
        """Rows of activations times weights of `elements`: bound by reading these, or by
        computing."""
        read_s = elements * self._element / rank.device.rates.memory_bytes_per_s
        compute_s = 2.0 * elements * tokens / flops
        if read_s >= compute_s:
            time.weights_s += read_s
        else:
            time.matmul_s += compute_s

    def _run_experts(self, time: StageTime, rank: _Rank, load: ExpertLoad, work: Work) -> None:
        """Of the busiest rank, on which the others wait in every layer: not in all layers the same
        one, so that each rank is charged for it."""
        rates, spec = rank.device.rates, self.spec
        tokens, of_prompts = work.num_tokens, work.num_tokens - work.num_decodes
        touched, rows = load.touched(tokens, of_prompts), load.rows(tokens, of_prompts)
        flops = rates.matmul_flops[self.dtype](rows / touched)
        matrix = spec.hidden_size * spec.moe_intermediate_size
        elements = 3 * matrix * touched * rank.num_sparse_layers
        self._product(time, rank, elements, rows / touched, flops)
        row = EXPERT_PASSES * spec.hidden_size + MLP_PASSES * spec.moe_intermediate_size
        passed = rank.num_sparse_layers * rows * row * self._element
        time.elementwise_s += passed / rates.elementwise_bytes_per_s

    def _attention_s(self, rank: _Rank, work: Work) -> tuple[float, float]:
        """Of rows with several queries, and of those with one."""
        rates, layers = rank.device.rates, rank.num_layers
        read_s = rank.kv_columns * self._kv / rates.kv_bytes_per_s
        chunks_s = 0.0
        if work.pairs:
            flops = rates.attention_flops
            if rates.attention_flops_by_share is not None:
                flops = rates.attention_flops_by_share(work.pairs / work.chunk_keys)
            compute_s = 4.0 * work.pairs * rank.query_columns / flops
            chunks_s = layers * max(compute_s, work.chunk_keys * read_s)
        decode_keys = work.decode_keys + work.num_decodes * rates.row_overhead_keys
        return chunks_s, layers * decode_keys * read_s

    # -- what moves ------------------------------------------------------------------------------

    def _host_rate(self, rank: int, own: float) -> float:
        """What one device gets while all of the machine's share the host."""
        shared = self._machine.host_bytes_per_s
        return own if shared is None else min(own, shared / len(self._machine.devices))

    def store_bytes_per_s(self, rank: int) -> float:
        return self._host_rate(rank, self._machine.devices[rank].rates.store_bytes_per_s)

    def load_bytes_per_s(self, rank: int) -> float:
        return self._host_rate(rank, self._machine.devices[rank].rates.load_bytes_per_s)

    @property
    def has_copy_engines(self) -> bool:
        """Whether copies leave computing alone, and those of different links each other. On CPU
        they take the time of the core that computes."""
        return self._machine.kind == "cuda"

    def transition_s(
        self, rank: int, bytes_by_source: Mapping[Source, int], *, at_once: bool = False
    ) -> float:
        """Until `rank` has its weights of the new layout; one source after the other, or what
        peers send `at_once` with the rest."""
        rates = self._machine.devices[rank].rates
        host_s = bytes_by_source.get("host", 0) / self.load_bytes_per_s(rank)
        peer_s = bytes_by_source.get("peer", 0) / self._machine.links.peer_bytes_per_s
        copy_s = bytes_by_source.get("copy", 0) / rates.copy_bytes_per_s
        return max(host_s + copy_s, peer_s) if at_once else host_s + peer_s + copy_s


def _rank(spec: ModelSpec, device: Device, ranges: RankRanges) -> _Rank:
    hidden, head_dim = spec.hidden_size, spec.head_dim
    query = ranges.query_heads.size * head_dim
    kv = 2 * ranges.kv_heads.size * head_dim
    mlp = ranges.mlp.size
    layers = ranges.layers.size
    sparse = sum(layer.sparse for layer in spec.layers[slice(*ranges.layers)])
    plain = layers - sparse
    columns = layers * (query + kv) + plain * 2 * mlp + sparse * spec.num_experts
    return _Rank(
        device=device,
        num_layers=layers,
        is_first=ranges.layers.start == 0,
        is_last=ranges.layers.stop == spec.num_hidden_layers,
        column_elements=hidden * columns,
        row_elements=hidden * (layers * query + plain * mlp),
        num_sparse_layers=sparse,
        query_columns=query,
        kv_columns=kv,
        stream_elements=layers * (STREAM_PASSES * hidden + HEAD_PASSES * (query + kv))
        + plain * MLP_PASSES * mlp,
        vocab_elements=ranges.vocab.size * hidden,
        num_logits=ranges.vocab.size,
    )


def _distinct(ranks: Iterable[_Rank]) -> tuple[_Rank, ...]:
    """Ranks with equal parts on equal devices take equally long."""
    return tuple(dict.fromkeys(ranks))
