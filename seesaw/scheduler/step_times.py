"""What the rows of a step take on each pipeline stage, by a cost model: for those who predict the
steps of an engine and those who let a clock run in its place.

Rows that run all layers are counted once for all of them. Where rows stop between two layers, the
layers that the same rows run are counted apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from seesaw.layout.ranges import Range
from seesaw.plan.cost_model import CostModel, StageTime
from seesaw.plan.work import Work, WorkCounter
from seesaw.scheduler.layer_cuts import Band, bands_of, cut_layers
from seesaw.scheduler.output import Row


@dataclass(slots=True)
class StepTimes:
    """`work` of all rows, `stages_s` of each stage, and how many positions each one hands to the
    next. `expert_loads`: how often an expert's weights are read, over all layers, as expected."""

    work: Work
    stages_s: list[float]
    handed_over: list[int]
    expert_loads: float = 0.0


class StepTimer:
    """Of steps of one replica in one layout."""

    def __init__(self, costs: CostModel, counter: WorkCounter) -> None:
        self.costs = costs
        self._counter = counter
        self._num_layers = costs.spec.num_hidden_layers

    def times(self, rows: Sequence[Row]) -> StepTimes:
        """Of a step with rows."""
        _, starts, counts, first, stop, samples = zip(*rows, strict=True)
        costs, num_layers = self.costs, self._num_layers
        work = self._counter.count_columns(counts, starts, sum(samples))
        if not any(first) and min(stop) == num_layers:
            return StepTimes(
                work,
                costs.stages_s(work),
                [work.num_tokens] * (costs.layout.pp - 1),
                costs.expert_loads(Range(0, num_layers), work),
            )
        bands = bands_of(rows)
        stages = [costs.stage_layers(stage) for stage in range(costs.layout.pp)]
        return StepTimes(
            work,
            [time.total_s for time in self._stages(bands)],
            [
                sum(band.num_tokens for band in bands if band.crosses(layers.stop))
                for layers in stages[:-1]
            ],
            sum(costs.expert_loads(*part) for part in self._parts(bands, Range(0, num_layers))),
        )

    def slowest(self, rows: Sequence[Row]) -> StageTime:
        """By what takes its time, of a step with rows."""
        return max(self._stages(bands_of(rows)), key=lambda time: time.total_s)

    def _stages(self, bands: Sequence[Band]) -> list[StageTime]:
        costs = self.costs
        return [
            costs.stage_parts(stage, self._parts(bands, costs.stage_layers(stage)))
            for stage in range(costs.layout.pp)
        ]

    def _parts(self, bands: Sequence[Band], layers: Range) -> list[tuple[Range, Work]]:
        """Of a stage: its layers that the same rows run, and what these are asked for."""
        return [
            (Range(cut.layer_start, cut.layer_stop), self._work(bands, cut.bands))
            for cut in cut_layers(bands, *layers)
        ]

    def _work(self, bands: Sequence[Band], active: Sequence[int]) -> Work:
        rows = [row for index in active for row in bands[index].rows]
        _, starts, counts, _, _, samples = zip(*rows, strict=True)
        return self._counter.count_columns(counts, starts, sum(samples))
