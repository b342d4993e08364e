"""The weights of a rank as its phases go by: when a change of layout begins, which layers may be
used, and what it has moved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from seesaw.errors import EngineDeadError
from seesaw.layout import Range, ReshardPlan
from seesaw.layout.format import WeightFormat
from seesaw.layout.reshard import Source
from seesaw.layout.spans import moves
from seesaw.scheduler.output import Phase
from seesaw.weights.change import Change, Span
from seesaw.weights.reshard import Resharder


class PhaseWeights(Protocol):
    """The rank's weights, which are those of one phase at a time."""

    def prepare(self, phase: Phase) -> None:
        """They will be those of `phase` soon, perhaps."""
        ...

    def begin(self, phase: Phase) -> None:
        """Make them those of `phase` from here on. Steps of the phase before must be done, or on a
        GPU be begun."""
        ...

    def wait(self, layer: int) -> None:
        """Until the layer's may be used, on a GPU by what the current stream is given from here on.
        Raises EngineDeadError where they did not come."""
        ...

    @property
    def is_changing(self) -> bool:
        """Whether layers must be waited for: since `begin`, until each was."""
        ...

    def take_moved(self) -> dict[str, int]:
        """Bytes by source of a change of which this rank has all; once, else nothing."""
        ...

    def take_spans(self) -> list[Span]:
        """When what of a change landed, since the last call."""
        ...

    def finish(self) -> None:
        """Wait for all, what other ranks take included. Raises EngineDeadError."""
        ...


class ChangingWeights:
    """`PhaseWeights` of a rank whose layouts differ. `layers`: its own in each.
    `background`: layers are used as they come, else `begin` waits for all. `on_error` and `cores`
    as `Change` has them."""

    def __init__(
        self,
        resharder: Resharder,
        changes: Mapping[Phase, ReshardPlan],
        layers: Mapping[Phase, Range],
        *,
        background: bool,
        on_error: Callable[[EngineDeadError], None],
        cores: Sequence[int] | None = None,
    ) -> None:
        self._resharder = resharder
        self._changes = changes
        self._layers = layers
        self._on_error = on_error
        self._background = background
        self._cores = cores
        self._change: Change | None = None
        self._to_come: set[int] = set()
        self._moved: dict[str, int] = {}
        self._spans: list[Span] = []  # of the change before
        self._unprepared = set(changes) if background else set()

    def prepare(self, phase: Phase) -> None:
        """Has this process map what the first change will copy from the image. No byte is moved
        early: where all ranks hold as many layers there is no place in an arena that the next
        layout writes and the present one does not read (docs/resharding.md)."""
        if phase in self._unprepared and not self.is_changing:
            self._unprepared.discard(phase)
            self._resharder.touch(self._changes[phase])

    def begin(self, phase: Phase) -> None:
        self.finish()
        plan = self._changes[phase]
        if not self._background:
            self._add(self._resharder.run(plan).bytes_by_source)
            return
        self._change = Change(self._resharder, plan, self._on_error, self._cores)
        self._to_come = self._change.layers.intersection(range(*self._layers[phase]))

    def wait(self, layer: int) -> None:
        if self._change is not None:
            self._change.wait(layer)
            self._to_come.discard(layer)

    @property
    def is_changing(self) -> bool:
        return bool(self._to_come)

    def take_moved(self) -> dict[str, int]:
        if self._change is not None and self._change.has_all:
            self._add(self._change.take_moved())
        moved, self._moved = self._moved, {}
        return moved

    def _add(self, moved: Mapping[Source, int]) -> None:
        for source, nbytes in moved.items():
            self._moved[source] = self._moved.get(source, 0) + nbytes

    def take_spans(self) -> list[Span]:
        taken, self._spans = self._spans, []
        return taken if self._change is None else taken + self._change.take_spans()

    def finish(self) -> None:
        if self._change is not None:
            self._change.finish()
            self._add(self._change.take_moved())
            self._spans = self._change.take_spans()
            self._change = None
            self._to_come = set()

    def close(self) -> None:
        """Wait until nothing is written any more, whatever became of it."""
        if self._change is not None:
            self._change.join()
            self._change = None


class MappedWeights:
    """`PhaseWeights` of a rank that runs from the image, whose layouts differ: nothing moves."""

    is_changing = False

    def __init__(
        self, fmt: WeightFormat, params: Mapping[Phase, Mapping[str, torch.Tensor]]
    ) -> None:
        names = {param.name for param in fmt.params if moves(param)}
        self._held = {
            phase: sum(tensor.nbytes for name, tensor in own.items() if name in names)
            for phase, own in params.items()
        }
        self._moved: dict[str, int] = {}

    def prepare(self, phase: Phase) -> None:
        """They are there."""

    def begin(self, phase: Phase) -> None:
        self._moved = {"resident": self._held[phase]}

    def wait(self, layer: int) -> None:
        """All are there."""

    def take_moved(self) -> dict[str, int]:
        moved, self._moved = self._moved, {}
        return moved

    def take_spans(self) -> list[Span]:
        return []

    def finish(self) -> None:
        """Nothing is under way."""
