"""What each rank of a layout holds of a model, as half-open ranges in units of the model.

Owns the rule by which layers, heads, MLP columns and vocabulary rows are cut. Knows nothing of
bytes, tensors or devices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from seesaw.errors import ConfigError
from seesaw.families.spec import ModelSpec
from seesaw.layout.parallel import ParallelLayout


class Range(NamedTuple):
    """`start .. stop`, stop excluded."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def overlap(self, other: Range) -> Range:
        """What both hold; of size 0 where they share nothing."""
        start = max(self.start, other.start)
        return Range(start, max(start, min(self.stop, other.stop)))


def split(total: int, parts: int, index: int) -> Range:
    """Part `index` of `0 .. total` cut into `parts`: sizes differ by one at most, larger first."""
    size, larger = divmod(total, parts)
    start = index * size + min(index, larger)
    return Range(start, start + size + (index < larger))


def split_tiles(total: int, tile: int, parts: int, index: int) -> Range:
    """The same in whole tiles, the last of which may be short; one by one where there are fewer
    tiles than parts."""
    tiles = -(-total // tile)
    if tiles < parts:
        return split(total, parts, index)
    part = split(tiles, parts, index)
    return Range(part.start * tile, min(part.stop * tile, total))


def stage_layers(layout: ParallelLayout, num_layers: int, stage: int) -> Range:
    """Layers of one stage: those that `layout` gives it, else an equal share."""
    if not layout.stages:
        return split(num_layers, layout.pp, stage)
    start = sum(layout.stages[:stage])
    return Range(start, start + layout.stages[stage])


MLP_TILE = 16
VOCAB_TILE = 32
"""Columns and rows that stay together, if there are enough: those of a panel (`panels.py`), which
holds a tile of gate and one of up."""


def vocab_range(vocab_size: int, tp: int, tp_rank: int) -> Range:
    """Vocabulary rows of one tensor-parallel rank."""
    return split_tiles(vocab_size, VOCAB_TILE, tp, tp_rank)


@dataclass(frozen=True, slots=True)
class RankRanges:
    """What one rank holds. Every query head finds its KV head on the same rank.

    Counted in layers, KV heads, query heads, columns of a plain MLP's inner size, experts of each
    sparse layer and rows of the vocabulary. `mlp` is empty where all layers are sparse, `experts`
    where none is.
    """

    layers: Range
    kv_heads: Range
    query_heads: Range
    mlp: Range
    experts: Range
    vocab: Range


def check_fits(layout: ParallelLayout, spec: ModelSpec) -> None:
    """Raises ConfigError where some rank of `layout` would hold no layer, head, column or row,
    or no expert where layers have some."""
    most_tp = min(spec.num_attention_heads, spec.vocab_size)
    if spec.num_plain_layers:
        most_tp = min(most_tp, spec.intermediate_size)
    experts = ""
    if spec.num_experts:
        most_tp = min(most_tp, spec.num_experts)
        experts = f" and {spec.num_experts} experts, which stay whole,"
    if layout.tp > most_tp:
        raise ConfigError(
            f"layout {layout}: {spec.architecture} with {spec.num_attention_heads} query heads"
            f"{experts} can be cut {most_tp} ways within a layer at most, got tp={layout.tp}. Use "
            f"tp{most_tp} or less; more stages (pp) or replicas (dp) take the other devices."
        )
    if layout.pp > spec.num_hidden_layers:
        raise ConfigError(
            f"layout {layout}: {spec.num_hidden_layers} layers make {spec.num_hidden_layers} "
            f"stages at most, got pp={layout.pp}. Use pp{spec.num_hidden_layers} or less; "
            "replicas (dp) take the other devices."
        )
    if layout.stages and sum(layout.stages) != spec.num_hidden_layers:
        equal = replace(layout, stages=())
        sizes = (stage_layers(equal, spec.num_hidden_layers, s).size for s in range(layout.pp))
        raise ConfigError(
            f"layout {layout}: its stages have {sum(layout.stages)} layers, {spec.architecture} "
            f"has {spec.num_hidden_layers}. Give each layer to one stage, such as "
            f"pp{'+'.join(map(str, sizes))}."
        )


def rank_ranges(layout: ParallelLayout, spec: ModelSpec, rank: int) -> RankRanges:
    """Ranges of one rank; replicas hold the same. Raises ConfigError (see `check_fits`)."""
    check_fits(layout, spec)
    at = layout.coordinates(rank)
    kv_heads, query_heads = _heads(spec, layout.tp, at.tp)
    columns = spec.intermediate_size if spec.num_plain_layers else 0
    return RankRanges(
        layers=stage_layers(layout, spec.num_hidden_layers, at.pp),
        kv_heads=kv_heads,
        query_heads=query_heads,
        mlp=split_tiles(columns, MLP_TILE, layout.tp, at.tp),
        experts=split(spec.num_experts, layout.tp, at.tp),
        vocab=vocab_range(spec.vocab_size, layout.tp, at.tp),
    )


def _heads(spec: ModelSpec, tp: int, tp_rank: int) -> tuple[Range, Range]:
    """KV heads and query heads of one tensor-parallel rank.

    Up to one rank per KV head, a rank takes whole groups (a KV head and the query heads that read
    it), uneven where they do not divide: 9 query / 3 KV heads on 2 ranks are 6 / 2 and 3 / 1.
    Beyond that a KV head is replicated on the ranks that share its group.
    """
    num_kv_heads = spec.num_key_value_heads
    group = spec.num_attention_heads // num_kv_heads
    if tp <= num_kv_heads:
        kv_heads = split(num_kv_heads, tp, tp_rank)
        return kv_heads, Range(kv_heads.start * group, kv_heads.stop * group)
    for kv_head in range(num_kv_heads):
        ranks = split(tp, num_kv_heads, kv_head)
        if tp_rank < ranks.stop:
            break
    part = split(group, ranks.size, tp_rank - ranks.start)
    query_heads = Range(kv_head * group + part.start, kv_head * group + part.stop)
    return Range(kv_head, kv_head + 1), query_heads
