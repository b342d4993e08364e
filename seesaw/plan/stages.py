"""How many layers each stage of a pipeline should have, so that the slowest takes least time.

Equal numbers of layers make unequal stages: the last one has the model's head too, and devices or
layers may differ. Whether another cut is worth it is the business of `search`.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, pairwise
from math import inf

from seesaw.layout.parallel import ParallelLayout
from seesaw.layout.ranges import Range
from seesaw.plan.cost_model import CostModel
from seesaw.plan.work import Work


def balanced(costs: CostModel, work: Work) -> ParallelLayout:
    """The layout of `costs`, whose stages are equal, with their layers chosen for steps of `work`:
    of all ways to cut the layers in order the one whose slowest stage is fastest, with the others
    as much alike as goes with it. The same layout where equal stages are as good."""
    layout, spec = costs.layout, costs.spec
    num_layers = spec.num_hidden_layers
    sparse = [0, *accumulate(layer.sparse for layer in spec.layers)]

    known: dict[tuple[int, int, int], float] = {}

    def cost(stage: int, start: int, stop: int) -> float:
        # Layers of a kind are alike: it does not matter which ones a stage has, but how many.
        alike = (stage, stop - start, sparse[stop] - sparse[start])
        if alike not in known:
            known[alike] = costs.stage_s(stage, Range(start, stop), work)
        return known[alike]

    # By how many layers the stages so far have: (slowest, sum of squares, bounds).
    best: dict[int, tuple[float, float, tuple[int, ...]]] = {0: (0.0, 0.0, (0,))}
    for stage in range(layout.pp):
        left = layout.pp - stage - 1
        stops = range(stage + 1, num_layers - left + 1) if left else [num_layers]
        found: dict[int, tuple[float, float, tuple[int, ...]]] = {}
        for stop in stops:
            found[stop] = (inf, inf, ())
            for start, (slowest, squares, bounds) in best.items():
                if start >= stop:
                    continue
                own = cost(stage, start, stop)
                option = (max(slowest, own), squares + own * own)
                if option < found[stop][:2]:
                    found[stop] = (*option, (*bounds, stop))
        best = found
    slowest, _, bounds = best[num_layers]
    if slowest >= max(costs.stages_s(work)) * (1 - 1e-9):
        return layout
    return replace(layout, stages=tuple(stop - start for start, stop in pairwise(bounds)))
