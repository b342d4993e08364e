"""What a model's weights take on the ranks of one layout, or of two that take turns.

Worked out once for each: a search asks for the same layouts with many settings, and addresses in an
arena take longer to plan than all else about memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from seesaw.config import EngineConfig
from seesaw.families.spec import ModelSpec
from seesaw.layout.arena import ArenaPlan, layer_bytes, plan_arena
from seesaw.layout.parallel import ParallelLayout
from seesaw.layout.plain import PlainFormat
from seesaw.layout.plan import Reload, plan_reshard
from seesaw.layout.ranges import RankRanges, rank_ranges
from seesaw.layout.reshard import Source
from seesaw.plan.machine import Kind

KEPT_MODELS = 4


def from_peers(config: EngineConfig, kind: Kind) -> bool:
    """Whether ranks take weights from each other, as the engine decides it."""
    return config.reshard_from == "peers" or (config.reshard_from == "auto" and kind == "cuda")


class RankChange(NamedTuple):
    """What one rank takes by source when a layout begins, and the most that one round of the
    change reads from its arena, which is held aside meanwhile."""

    bytes_by_source: Mapping[Source, int]
    aside: int


Change = tuple[Sequence[RankChange], Sequence[RankChange]]
"""To the second layout of a pair and back, by rank."""


class WeightBytes:
    """Of `spec` in elements of `element_bytes`. `total`: of all tensors, as they are; `image`: of
    the host's copy; `largest_layer`: of that layer, whole."""

    def __init__(self, spec: ModelSpec, element_bytes: int) -> None:
        self.format = PlainFormat(spec, element_bytes)
        self.total = spec.num_parameters * element_bytes
        self.image = self.format.image_bytes
        self.largest_layer = layer_bytes(self.format)
        self._spec = spec
        self._ranges: dict[ParallelLayout, list[RankRanges]] = {}
        self._arenas: dict[Sequence[ParallelLayout], list[int]] = {}
        self._changes: dict[tuple[object, ...], Change] = {}

    def ranges(self, layout: ParallelLayout) -> Sequence[RankRanges]:
        """Of each rank. Raises ConfigError where the model cannot be cut so."""
        if layout not in self._ranges:
            ranks = range(layout.num_ranks)
            self._ranges[layout] = [rank_ranges(layout, self._spec, rank) for rank in ranks]
        return self._ranges[layout]

    def arenas(self, layouts: tuple[ParallelLayout, ...]) -> Sequence[int]:
        """Of each rank of a replica that runs these layouts, one or two."""
        if layouts not in self._arenas:
            self._arenas[layouts] = [plan.nbytes for plan in self.plan_arenas(layouts)]
        return self._arenas[layouts]

    def plan_arenas(self, layouts: tuple[ParallelLayout, ...]) -> list[ArenaPlan]:
        """The same with every address; too large to be kept."""
        held = [self.ranges(layout) for layout in layouts]
        return [plan_arena(self.format, held, rank) for rank in range(layouts[0].num_ranks)]

    def changes(
        self, layouts: tuple[ParallelLayout, ParallelLayout], reload: Reload, peers: bool
    ) -> Change:
        """Exactly what the engine will do."""
        key = (*layouts, reload, peers)
        if key not in self._changes:
            arenas = self.plan_arenas(layouts)
            sides = [self.ranges(layout) for layout in layouts]
            found: list[Sequence[RankChange]] = []
            for old, new in ((0, 1), (1, 0)):
                plan = plan_reshard(
                    self.format, sides[old], sides[new], arenas, old_index=old, new_index=new,
                    reload=reload, peers=peers,
                )  # fmt: skip
                found.append(
                    [
                        RankChange(plan.bytes_by_source(rank), plan.snapshot_bytes(rank))
                        for rank in range(len(arenas))
                    ]
                )
            self._changes[key] = (found[0], found[1])
        return self._changes[key]


def weight_bytes(spec: ModelSpec, element_bytes: int) -> WeightBytes:
    """The same object for the same spec object, while it is among the last few asked for."""
    return _made(_Same(spec), element_bytes)


class _Same:
    """A spec by identity: its tensors are too many to be hashed and compared each time."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    def __hash__(self) -> int:
        return id(self.spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.spec is other.spec


@lru_cache(maxsize=KEPT_MODELS)
def _made(same: _Same, element_bytes: int) -> WeightBytes:
    return WeightBytes(same.spec, element_bytes)
