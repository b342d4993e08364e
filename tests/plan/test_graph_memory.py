"""Memory for CUDA graphs: set aside where steps are recorded, and nowhere else."""

from __future__ import annotations

import pytest

from seesaw.config import EngineConfig
from seesaw.layout import ParallelLayout
from seesaw.plan.choice import LayoutChoice
from seesaw.plan.graph_sizes import RECORDED_BYTES
from seesaw.plan.memory import MemoryPlan, Space, plan_memory
from tests.plan.test_memory import GIB, spec

GPU = Space("cuda", 70 * GIB, 80 * GIB, 64 * GIB, 64 * GIB)


def plan(space: Space = GPU, layout: str = "tp1", native: bool = True, **given) -> MemoryPlan:
    layouts = LayoutChoice(*(ParallelLayout.parse(layout),) * 2, "for the test")
    config = EngineConfig(model="m", device_memory="20GiB", **given)
    return plan_memory(config, spec(), 2, space, layouts, False, native=native)


def test_graphs_are_part_of_the_work_space() -> None:
    eager, made = plan(enforce_eager=True), plan()
    assert eager.graph_bytes == 0
    assert made.graph_bytes > RECORDED_BYTES
    assert made.work_bytes == eager.work_bytes + made.graph_bytes
    assert plan(max_num_seqs=8).graph_bytes < made.graph_bytes, "fewer rows take less"


@pytest.mark.parametrize(
    "given",
    [
        {"space": Space("cpu", 70 * GIB, 80 * GIB, 64 * GIB, 64 * GIB)},
        {"native": False},
        {"layout": "pp2"},
    ],
    ids=["cpu", "plain-torch", "stages"],
)
def test_nothing_is_set_aside_where_none_are_recorded(given) -> None:
    assert plan(**given).graph_bytes == 0


def test_kernels_need_less_than_plain_torch_on_a_gpu() -> None:
    """They gather no keys and write no scores."""
    kernels, plain = plan(enforce_eager=True), plan(enforce_eager=True, native=False)
    assert kernels.work_bytes < plain.work_bytes
