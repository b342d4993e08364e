"""What a model's weights take on the ranks of one layout, or of two that take turns.

Worked out once for each: a search asks for the same layouts with many settings, and addresses in an
arena take longer to plan than all else about memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from seesaw.families.spec import ModelSpec
from seesaw.layout.arena import ArenaPlan, layer_bytes, plan_arena
from seesaw.layout.parallel import ParallelLayout
from seesaw.layout.plain import PlainFormat
from seesaw.layout.ranges import RankRanges, rank_ranges

KEPT_MODELS = 4


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
