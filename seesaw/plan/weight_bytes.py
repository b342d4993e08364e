"""What a model's weights take on the ranks of one layout, or of two that take turns.

Worked out once for each: a search asks for the same layouts with many settings, and addresses in an
arena take longer to plan than all else about memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from seesaw.config import EngineConfig
from seesaw.errors import ConfigError
from seesaw.families.spec import ModelSpec
from seesaw.layout.arena import ArenaPlan, layer_bytes, plan_arena
from seesaw.layout.format import FormatName, WeightFormat
from seesaw.layout.formats import format_name, make_format
from seesaw.layout.parallel import ParallelLayout
from seesaw.layout.plan import Reload, plan_reshard
from seesaw.layout.ranges import RankRanges, rank_ranges
from seesaw.layout.reshard import Source
from seesaw.layout.spans import moving_bytes
from seesaw.plan.machine import Kind

KEPT_MODELS = 4


def dtype_of(config: EngineConfig, spec: ModelSpec) -> str:
    """What `auto` means: the checkpoint's, but bfloat16 for float32 ones."""
    if config.dtype != "auto":
        return config.dtype
    return "bfloat16" if spec.torch_dtype == "float32" else spec.torch_dtype


def weight_format(
    config: EngineConfig, spec: ModelSpec, layouts: Iterable[ParallelLayout], kind: Kind,
    native: bool,
) -> FormatName:  # fmt: skip
    """As the engine chooses it. `native`: what is on CPU computes with seesaw's own kernels."""
    return format_name(spec, dtype_of(config, spec), layouts, native=native and kind == "cpu")


def reload_of(config: EngineConfig, name: FormatName) -> Reload:
    """What `reload` means where weights are in the format `name`. Raises ConfigError."""
    if config.reload == "auto":
        # To say where weights come from is to ask that they be fetched.
        return "none" if name == "panels" and config.reshard_from == "auto" else "missing"
    if config.reload == "none" and name != "panels":
        raise ConfigError(
            "reload='none': ranks can run straight from the host's copy of the weights only on "
            "CPU, with seesaw's own kernels and a model that these can run (the log says so of "
            "others). Leave it out, or use reload='missing'."
        )
    return config.reload


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
    """Of `spec` in elements of `element_bytes`. `total`: of all tensors, one after another;
    `image`: of the host's copy; `largest_layer`: of that layer, whole."""

    def __init__(self, spec: ModelSpec, element_bytes: int, name: FormatName = "plain") -> None:
        self.format = make_format(name, spec, element_bytes)
        self.total = self.format.param_bytes
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

    def copied(self, layouts: tuple[ParallelLayout, ...]) -> Sequence[int]:
        """Of each rank that runs from the image: of tensors that do not lie there as one, which it
        has copies of."""
        fmt = self.format
        return [
            sum(copied_bytes(fmt, self.ranges(layout)[rank]) for layout in layouts)
            for rank in range(layouts[0].num_ranks)
        ]

    def changes(
        self, layouts: tuple[ParallelLayout, ParallelLayout], reload: Reload, peers: bool
    ) -> Change:
        """Exactly what the engine will do."""
        key = (*layouts, reload, peers)
        if reload == "none":
            to_prefill, to_decode = (
                [RankChange(in_place(self.format, held), 0) for held in self.ranges(layout)]
                for layout in layouts
            )
            return to_decode, to_prefill
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


def in_place(fmt: WeightFormat, ranges: RankRanges) -> Mapping[Source, int]:
    """What a layout takes where ranks run from the image: all of it is where it was."""
    return {"resident": moving_bytes(fmt, ranges), "copy": 0, "peer": 0, "host": 0}


def copied_bytes(fmt: WeightFormat, ranges: RankRanges) -> int:
    """Of tensors that a rank with `ranges` holds and that the image does not have as one."""
    return sum(
        run.size
        for param in fmt.params
        if fmt.window(param, ranges) is None
        for run in fmt.runs(param, ranges)
    )


def weight_bytes(spec: ModelSpec, element_bytes: int, name: FormatName = "plain") -> WeightBytes:
    """The same object for the same spec object, while it is among the last few asked for."""
    return _made(_Same(spec), element_bytes, name)


class _Same:
    """A spec by identity: its tensors are too many to be hashed and compared each time."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    def __hash__(self) -> int:
        return id(self.spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.spec is other.spec


@lru_cache(maxsize=KEPT_MODELS)
def _made(same: _Same, element_bytes: int, name: FormatName) -> WeightBytes:
    return WeightBytes(same.spec, element_bytes, name)
