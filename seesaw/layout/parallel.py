"""`ParallelLayout`: how many ways a model is replicated, cut across layers and cut into stages.

Owns the text form and the numbering of ranks; knows nothing of any model, so that how many layers
equal stages have is the business of `ranges`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

from seesaw.errors import ConfigError

AXES = ("dp", "tp", "pp")


class Coordinates(NamedTuple):
    """Where a rank stands: its replica, its part of each layer, its stage. All from 0."""

    dp: int
    tp: int
    pp: int


@dataclass(frozen=True, slots=True)
class ParallelLayout:
    """`dp` replicas, each cut `tp` ways within a layer and into `pp` stages of layers.

    Ranks are numbered replica by replica, in it stage by stage, so that the ranks that share a
    layer (which talk most) are neighbours.

    `stages` says how many layers each stage has, from the first on; empty = as equal as they can
    be. The model's head makes the last of equal stages the slowest: `pp7+5` gives it fewer layers.
    """

    dp: int = 1
    tp: int = 1
    pp: int = 1
    stages: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for axis in AXES:
            value = getattr(self, axis)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"layout: {axis}={value!r}: expected an integer from 1.")
        if self.stages and (len(self.stages) != self.pp or min(self.stages) < 1):
            raise ConfigError(
                f"layout: layers {'+'.join(map(str, self.stages))} of {self.pp} stages: expected "
                "the layers of each stage, at least 1, as in pp7+5."
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """`dp2-tp4-pp2` -> layout; any order, an axis left out is 1. `pp7+5` has stages of 7 and 5
        layers. Raises ConfigError."""
        sizes: dict[str, int] = {}
        stages: tuple[int, ...] = ()
        for part in text.strip().lower().split("-"):
            match = re.fullmatch(r"(?:(dp|tp|pp)([0-9]+)|pp([0-9]+(?:\+[0-9]+)+))", part)
            if match is None:
                raise ConfigError(
                    f"layout {text!r}: cannot read {part!r}. Expected dp, tp and pp, each with a "
                    "number and joined by '-', such as dp2-tp4-pp2 or tp2; stages may be given by "
                    "their layers, such as pp7+5."
                )
            axis = match[1] or "pp"
            if axis in sizes:
                raise ConfigError(f"layout {text!r}: {axis} is given twice. Give it once.")
            if match[3]:
                stages = tuple(map(int, match[3].split("+")))
            sizes[axis] = len(stages) if match[3] else int(match[2])
        return cls(**sizes, stages=stages)

    def __str__(self) -> str:
        return "-".join(map(self._part, AXES))

    @property
    def short(self) -> str:
        """Without the axes that are 1: `tp4-pp2`, or `tp1` for one device."""
        return "-".join(self._part(axis) for axis in AXES if getattr(self, axis) > 1) or "tp1"

    def _part(self, axis: str) -> str:
        if axis == "pp" and self.pp > 1 and self.stages:
            return f"pp{'+'.join(map(str, self.stages))}"
        return f"{axis}{getattr(self, axis)}"

    @property
    def num_ranks(self) -> int:
        return self.dp * self.tp * self.pp

    @property
    def replica(self) -> Self:
        """One replica by itself: the same layout with dp=1."""
        return replace(self, dp=1)

    def coordinates(self, rank: int) -> Coordinates:
        """Inverse of `rank_of`. Raises ConfigError for a rank that the layout does not have."""
        if not 0 <= rank < self.num_ranks:
            raise ConfigError(
                f"rank {rank} of layout {self}: expected 0 to {self.num_ranks - 1}, "
                "one per device of the layout."
            )
        stage, tp = divmod(rank, self.tp)
        dp, pp = divmod(stage, self.pp)
        return Coordinates(dp=dp, tp=tp, pp=pp)

    def rank_of(self, at: Coordinates) -> int:
        return (at.dp * self.pp + at.pp) * self.tp + at.tp
