"""What all weight formats have alike: the decoder's parameters under their names, which rank holds
which of their rows, and where each lies in the image.

Standard library only. How rows follow each other as bytes is a format's own (`plain.py`,
`panels.py`); where a checkpoint's rows go within them is the business of `weights`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from seesaw.families.spec import ModelSpec, ParamSpec
from seesaw.layout.format import ByteRun, Cut, FormatName, StoredParam, Window
from seesaw.layout.ranges import Range, RankRanges

ALIGNMENT = 64
"""Bytes; every parameter begins on a multiple, in the image as in an arena."""

EMBEDDING = "model.embed_tokens.weight"

# Which fused parameter a projection becomes a part of (the first part stands for all), and the cut.
_FUSED: Mapping[str, tuple[str, Cut]] = {
    "q_proj": ("qkv_proj", "heads"),
    "gate_proj": ("gate_up_proj", "gate_up"),
}
_PARTS = ("k_proj", "v_proj", "up_proj")
_BY_INPUT: Mapping[str, Cut] = {"o_proj": "query", "down_proj": "mlp"}
# The same for the matrices of an expert, in both spellings of families.
EXPERT_GATES = ("gate_proj", "w1")
EXPERT_UPS = ("up_proj", "w3")
EXPERT_DOWNS = ("down_proj", "w2")


def align(nbytes: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def up_to(count: int, multiple: int) -> int:
    """The next multiple of `multiple`."""
    return -(-count // multiple) * multiple


class FusedParam(NamedTuple):
    """One parameter of the decoder before a format has given it an order: `[out, in]` if it is a
    matrix, with what tensor parallelism cuts (of o_proj and down_proj `in`, else `out`)."""

    name: str
    layer: int | None
    shape: tuple[int, ...]
    cut: Cut

    @property
    def is_cut_by_input(self) -> bool:
        return self.cut in ("query", "mlp")

    @property
    def is_expert_down(self) -> bool:
        """Whether its shape is `[experts, in, out]`."""
        return self.cut == "experts" and self.name.endswith(".down_proj.weight")


def fused_params(spec: ModelSpec, head_step: int, gate_tile: int | None) -> list[FusedParam]:
    """The decoder's parameters, layer by layer.

    q, k and v are `qkv_proj`: for each KV head its query heads, its K head, its V head, `head_step`
    rows each. Gate and up are `gate_up_proj`, `gate_tile` rows of either in turn, or all rows of
    gate and then those of up. A layer's experts are two parameters, `experts.gate_up_proj` and
    `experts.down_proj`, expert after expert and each as one plain MLP would be, gate rows first and
    down transposed. A tied head is no parameter: it is the embedding.
    """
    found = (_fused(spec, param, head_step, gate_tile) for param in spec.params)
    return [param for param in found if param is not None]


def _fused(
    spec: ModelSpec, param: ParamSpec, head_step: int, gate_tile: int | None
) -> FusedParam | None:
    module, _, part = param.name.rpartition(".")
    prefix, _, projection = module.rpartition(".")
    if param.expert is not None:
        return _fused_experts(spec, param, projection) if param.expert == 0 else None
    if projection in _PARTS:
        return None
    if projection in _FUSED:
        fused, cut = _FUSED[projection]
        rows = 2 * up_to(spec.intermediate_size, gate_tile or 1)
        if cut == "heads":
            rows = (spec.num_attention_heads + 2 * spec.num_key_value_heads) * head_step
        return FusedParam(f"{prefix}.{fused}.{part}", param.layer, (rows, *param.shape[1:]), cut)
    if projection in _BY_INPUT and len(param.shape) == 2:
        return FusedParam(param.name, param.layer, param.shape, _BY_INPUT[projection])
    if projection == "gate":
        return FusedParam(f"{mlp_of(param)}.gate.weight", param.layer, param.shape, "none")
    cut = "vocab" if param.split_dim == "vocab" else "none"
    return FusedParam(param.name, param.layer, param.shape, cut)


def _fused_experts(spec: ModelSpec, param: ParamSpec, projection: str) -> FusedParam | None:
    """All experts of the layer, made where the first one's gate or down matrix is met."""
    inner, hidden = spec.moe_intermediate_size, spec.hidden_size
    if projection in EXPERT_GATES:
        name, rows = "gate_up_proj", 2 * inner
    elif projection in EXPERT_DOWNS:
        name, rows = "down_proj", inner
    else:
        return None
    shape = (spec.num_experts, rows, hidden)
    return FusedParam(f"{mlp_of(param)}.experts.{name}.weight", param.layer, shape, "experts")


def mlp_of(param: ParamSpec) -> str:
    """The module that stands in a layer's MLP's place, under one name for all families."""
    return f"model.layers.{param.layer}.mlp"


class StoredFormat:
    """A `WeightFormat` of rows one after another, whole ones or of a transpose; a format that
    stores some parameters otherwise says how."""

    name: FormatName

    def __init__(
        self,
        spec: ModelSpec,
        element_bytes: int,
        params: Sequence[StoredParam],
        *,
        head_step: int,
        gate_tile: int | None,
    ) -> None:
        self.params = tuple(params)
        self.head_step, self.gate_tile = head_step, gate_tile
        self._spec = spec
        self._element_bytes = element_bytes
        self._known_runs: dict[tuple[object, ...], tuple[ByteRun, ...]] = {}
        self.image_offsets: dict[str, int] = {}
        self.image_bytes = 0
        for param in self.params:
            self.image_offsets[param.name] = self.image_bytes
            self.image_bytes += align(self.nbytes(param))

    @property
    def param_bytes(self) -> int:
        return sum(self.nbytes(param) for param in self.params)

    def nbytes(self, param: StoredParam) -> int:
        return math.prod(param.shape) * self._element_bytes

    def holds(self, param: StoredParam, ranges: RankRanges) -> bool:
        """A layer's parameters: the stage of the layer. Embedding: the first stage, and the last
        too where it is the head. Final norm and head: the last stage."""
        layers = ranges.layers
        if param.layer is not None:
            return layers.start <= param.layer < layers.stop
        first, last = layers.start == 0, layers.stop == self._spec.num_hidden_layers
        if param.name == EMBEDDING:
            return first or (last and self._spec.tie_word_embeddings)
        return last

    def runs(self, param: StoredParam, ranges: RankRanges) -> tuple[ByteRun, ...]:
        if not self.holds(param, ranges):
            return ()
        alike = (param.cut, param.shape, param.order, ranges)
        if alike not in self._known_runs:
            self._known_runs[alike] = tuple(self._runs(param, ranges))
        return self._known_runs[alike]

    def _runs(self, param: StoredParam, ranges: RankRanges) -> list[ByteRun]:
        row_bytes = self._row_bytes(param)
        return [
            ByteRun(run.start * row_bytes, run.size * row_bytes) for run in self._cut(param, ranges)
        ]

    def local_shape(self, param: StoredParam, ranges: RankRanges) -> tuple[int, ...]:
        nbytes = sum(run.size for run in self.runs(param, ranges))
        return (nbytes // self._row_bytes(param), *param.shape[1:])

    def window(self, param: StoredParam, ranges: RankRanges) -> Window | None:
        runs = self.runs(param, ranges)
        if len(runs) != 1:
            return None
        strides = [math.prod(param.shape[dim + 1 :]) for dim in range(len(param.shape))]
        return Window(runs[0].start, tuple(strides))

    def _row_bytes(self, param: StoredParam) -> int:
        return math.prod(param.shape[1:]) * self._element_bytes

    def _cut(self, param: StoredParam, ranges: RankRanges) -> list[Range]:
        """What the rank holds along the dim that is cut, in order, as few ranges as can be."""
        match param.cut:
            case "none":
                found = [Range(0, param.shape[0])]
            case "vocab":
                found = [ranges.vocab]
            case "mlp":
                found = [ranges.mlp]
            case "experts":
                found = [ranges.experts]
            case "gate_up":
                found = self._gate_and_up(ranges.mlp)
            case "query":
                found = [times(ranges.query_heads, self._spec.head_dim)]
            case "heads":
                found = [times(heads, self.head_step) for heads in self._fused_heads(ranges)]
        return _joined(found)

    def _gate_and_up(self, mlp: Range) -> list[Range]:
        raise NotImplementedError

    def _fused_heads(self, ranges: RankRanges) -> list[Range]:
        """Heads of the fused QKV, counted through it: whole groups, or part of the query heads of
        one group and its K and V head where several ranks share a KV head."""
        group = self._spec.num_attention_heads // self._spec.num_key_value_heads
        kv_heads, query_heads = ranges.kv_heads, ranges.query_heads
        if query_heads == times(kv_heads, group):
            return [times(kv_heads, group + 2)]
        # Each group before this one is two heads longer here than it counts query heads.
        before = 2 * kv_heads.start
        end = (kv_heads.start + 1) * (group + 2)
        return [
            Range(query_heads.start + before, query_heads.stop + before),
            Range(end - 2, end),
        ]


def times(part: Range, factor: int) -> Range:
    return Range(part.start * factor, part.stop * factor)


def _joined(ranges: Iterable[Range]) -> list[Range]:
    """Ranges of which none begins where the one before it ends."""
    joined: list[Range] = []
    for part in ranges:
        if joined and joined[-1].stop == part.start:
            joined[-1] = Range(joined[-1].start, part.stop)
        else:
            joined.append(part)
    return joined
