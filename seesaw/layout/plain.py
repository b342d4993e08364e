"""`PlainFormat`: rows one after another, `[out, in]` for what tensor parallelism cuts by column and
`[in, out]` for what it cuts by row, so that a slice of any layout is one or two runs.

Owns the decoder's parameters as they are stored (`stored_params`). Standard library only; where a
checkpoint's rows go within them is the business of `weights`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from seesaw.families.spec import ModelSpec, ParamSpec
from seesaw.layout.format import ByteRun, Cut, StoredParam
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
_TRANSPOSED: Mapping[str, Cut] = {"o_proj": "query", "down_proj": "mlp"}
# The same for the matrices of an expert, in both spellings of families.
_EXPERT_GATES = ("gate_proj", "w1")
_EXPERT_DOWNS = ("down_proj", "w2")


def align(nbytes: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def stored_params(spec: ModelSpec) -> tuple[StoredParam, ...]:
    """The decoder's parameters, layer by layer, fused and transposed as they are stored.

    q, k and v are `qkv_proj` (for each KV head its query heads, its K head, its V head), gate and
    up are `gate_up_proj` (gate rows first); o_proj and down_proj are stored `[in, out]`. A layer's
    experts are two parameters, `experts.gate_up_proj` and `experts.down_proj`, expert after expert
    and each as one MLP would be. A tied head is no parameter: it is the embedding.
    """
    found = (_stored(spec, param) for param in spec.params)
    return tuple(param for param in found if param is not None)


def _stored(spec: ModelSpec, param: ParamSpec) -> StoredParam | None:
    module, _, part = param.name.rpartition(".")
    prefix, _, projection = module.rpartition(".")
    if param.expert is not None:
        return _stored_experts(spec, param, projection) if param.expert == 0 else None
    if projection in _PARTS:
        return None
    if projection in _FUSED:
        fused, cut = _FUSED[projection]
        rows = 2 * spec.intermediate_size
        if cut == "heads":
            rows = (spec.num_attention_heads + 2 * spec.num_key_value_heads) * spec.head_dim
        name = f"{prefix}.{fused}.{part}"
        return StoredParam(name, param.layer, (rows, *param.shape[1:]), cut)
    if projection in _TRANSPOSED and len(param.shape) == 2:
        out, size = param.shape
        return StoredParam(param.name, param.layer, (size, out), _TRANSPOSED[projection])
    if projection == "gate":
        return StoredParam(f"{_mlp(param)}.gate.weight", param.layer, param.shape, "none")
    cut = "vocab" if param.split_dim == "vocab" else "none"
    return StoredParam(param.name, param.layer, param.shape, cut)


def _stored_experts(spec: ModelSpec, param: ParamSpec, projection: str) -> StoredParam | None:
    """All experts of the layer, made where the first one's gate or down matrix is met."""
    inner, hidden = spec.moe_intermediate_size, spec.hidden_size
    if projection in _EXPERT_GATES:
        name, rows = "gate_up_proj", 2 * inner
    elif projection in _EXPERT_DOWNS:
        name, rows = "down_proj", inner
    else:
        return None
    shape = (spec.num_experts, rows, hidden)
    return StoredParam(f"{_mlp(param)}.experts.{name}.weight", param.layer, shape, "experts")


def _mlp(param: ParamSpec) -> str:
    """The module that stands in a layer's MLP's place, under one name for all families."""
    return f"model.layers.{param.layer}.mlp"


class PlainFormat:
    """`WeightFormat` of a model whose elements have `element_bytes` bytes, row after row."""

    def __init__(self, spec: ModelSpec, element_bytes: int) -> None:
        self.params = stored_params(spec)
        self._spec = spec
        self._element_bytes = element_bytes
        self.image_offsets: dict[str, int] = {}
        self.image_bytes = 0
        for param in self.params:
            self.image_offsets[param.name] = self.image_bytes
            self.image_bytes += align(self.nbytes(param))

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
        row_bytes = self._row_bytes(param)
        rows = _joined(self._rows(param, ranges))
        return tuple(ByteRun(run.start * row_bytes, run.size * row_bytes) for run in rows)

    def local_shape(self, param: StoredParam, ranges: RankRanges) -> tuple[int, ...]:
        nbytes = sum(run.size for run in self.runs(param, ranges))
        return (nbytes // self._row_bytes(param), *param.shape[1:])

    def _row_bytes(self, param: StoredParam) -> int:
        return math.prod(param.shape[1:]) * self._element_bytes

    def _rows(self, param: StoredParam, ranges: RankRanges) -> list[Range]:
        """Rows of `param` that the rank holds, in the order in which they lie there."""
        spec, mlp = self._spec, ranges.mlp
        match param.cut:
            case "none":
                return [Range(0, param.shape[0])]
            case "vocab":
                return [ranges.vocab]
            case "mlp":
                return [mlp]
            case "experts":
                return [ranges.experts]
            case "gate_up":
                up = spec.intermediate_size
                return [mlp, Range(up + mlp.start, up + mlp.stop)]
            case "query":
                return [_times(ranges.query_heads, spec.head_dim)]
            case "heads":
                return [_times(heads, spec.head_dim) for heads in self._fused_heads(ranges)]

    def _fused_heads(self, ranges: RankRanges) -> list[Range]:
        """Heads of the fused QKV, counted through it: whole groups, or part of the query heads of
        one group and its K and V head where several ranks share a KV head."""
        group = self._spec.num_attention_heads // self._spec.num_key_value_heads
        kv_heads, query_heads = ranges.kv_heads, ranges.query_heads
        if query_heads == _times(kv_heads, group):
            return [_times(kv_heads, group + 2)]
        # Each group before this one is two heads longer here than it counts query heads.
        before = 2 * kv_heads.start
        end = (kv_heads.start + 1) * (group + 2)
        return [
            Range(query_heads.start + before, query_heads.stop + before),
            Range(end - 2, end),
        ]


def _times(heads: Range, factor: int) -> Range:
    return Range(heads.start * factor, heads.stop * factor)


def _joined(ranges: Iterable[Range]) -> list[Range]:
    """Ranges of which none begins where the one before it ends."""
    joined: list[Range] = []
    for part in ranges:
        if joined and joined[-1].stop == part.start:
            joined[-1] = Range(joined[-1].start, part.stop)
        else:
            joined.append(part)
    return joined
