"""Costs of steps of drawn models in drawn layouts, and a rank's matrices by its tensors."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from seesaw.families.spec import ModelSpec
from seesaw.layout import ParallelLayout, PlainFormat, layouts_for, rank_ranges
from seesaw.plan.cost_model import CostModel
from seesaw.plan.machine import Device, Machine
from seesaw.plan.work import Work, WorkCounter
from tests.layout.models import models, with_any_stages
from tests.plan.devices import make_device, make_machine

Row = tuple[int, int, bool]
rows_of_steps = st.lists(
    st.tuples(st.integers(1, 9), st.integers(0, 30), st.booleans()).map(
        lambda row: (row[0], row[0] + row[1], row[2])
    ),
    min_size=1,
    max_size=6,
)
rates = st.floats(1e3, 1e9)


@st.composite
def models_and_layouts(
    draw: st.DrawFn, sparse: bool | None = None
) -> tuple[ModelSpec, ParallelLayout]:
    """Of one replica; `sparse`: only models with experts, or only such without."""
    spec = draw(models())
    assume(sparse is None or sparse == bool(spec.num_experts))
    counts = [count for count in range(1, 9) if layouts_for(count, spec, dp=1)]
    layouts = st.sampled_from(layouts_for(draw(st.sampled_from(counts)), spec, dp=1))
    return spec, draw(with_any_stages(layouts, spec.num_hidden_layers))


def costs_of(
    spec: ModelSpec, layout: ParallelLayout, devices: Device | Machine, **given: Any
) -> CostModel:
    machine = devices if isinstance(devices, Machine) else make_machine(devices, layout.num_ranks)
    return CostModel(spec, machine, layout, "float16", **given)


def work_of(spec: ModelSpec, rows: list[Row]) -> Work:
    return WorkCounter(spec).count(rows)


def alone(spec: ModelSpec, layout: ParallelLayout, rank: int, **slow: float) -> CostModel:
    """Costs where only `rank` takes time, so that its stage takes as long as it."""
    devices = [make_device(**slow) if r == rank else make_device() for r in range(layout.num_ranks)]
    return costs_of(spec, layout, make_machine(devices))


def matrix_elements(spec: ModelSpec, layout: ParallelLayout, rank: int) -> tuple[int, int]:
    """Elements of a rank's column-parallel (with routers) and row-parallel matrices, without
    experts, by its tensors."""
    fmt, ranges = PlainFormat(spec, 2), rank_ranges(layout, spec, rank)
    columns = rows = 0
    for param in fmt.params:
        if not fmt.holds(param, ranges) or param.layer is None:
            continue
        size = math.prod(fmt.local_shape(param, ranges))
        if param.name.endswith(("qkv_proj.weight", "mlp.gate_up_proj.weight", "mlp.gate.weight")):
            columns += size
        elif param.name.endswith(("o_proj.weight", "mlp.down_proj.weight")):
            rows += size
    return columns, rows
