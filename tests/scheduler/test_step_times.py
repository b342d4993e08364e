"""What steps cost whose rows run some of the layers: parts add up to the whole, and experts are
read as often as the closed form says."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seesaw.layout.parallel import ParallelLayout
from seesaw.layout.ranges import Range
from seesaw.plan.experts import chunked_passes, expert_load, layered_passes
from seesaw.plan.work import WorkCounter
from seesaw.scheduler import policies
from seesaw.scheduler.layer_cuts import bands_of, cut_layers
from seesaw.scheduler.output import Row
from seesaw.scheduler.scheduler import Scheduler, SchedulerConfig
from seesaw.scheduler.step_times import StepTimer
from tests.layout.models import make_model
from tests.plan.costs import costs_of, models_and_layouts
from tests.plan.devices import make_device
from tests.scheduler.harness import CONFIG, add, prompt_of, step_of
from tests.scheduler.test_layered_prefill import update

DEVICE = {
    "flops": 1e5, "memory_bytes_per_s": 1e4, "kv_bytes_per_s": 3e3, "attention_flops": 1e4,
    "elementwise_bytes_per_s": 1e4, "layer_overhead_s": 0.3, "step_overhead_s": 2.0,
}  # fmt: skip


def timer_of(spec: Any, layout: ParallelLayout) -> StepTimer:
    return StepTimer(costs_of(spec, layout, make_device(**DEVICE)), WorkCounter(spec))


@st.composite
def batches(draw: st.DrawFn, num_layers: int) -> list[Row]:
    """Rows with any layers."""
    rows = []
    for index in range(draw(st.integers(1, 6))):
        first = draw(st.integers(0, num_layers - 1))
        stop = draw(st.integers(first + 1, num_layers))
        samples = stop == num_layers and draw(st.booleans())
        start, count = draw(st.integers(0, 30)), draw(st.integers(1, 9))
        rows.append(Row(str(index), start, count, first, stop, samples))
    return rows


@given(st.integers(1, 9), st.data())
def test_cuts_have_each_row_in_each_of_its_layers_once(
    num_layers: int, data: st.DataObject
) -> None:
    rows = data.draw(batches(num_layers))
    bands = bands_of(rows)
    assert [row for band in bands for row in band.rows] == rows
    start = data.draw(st.integers(0, num_layers - 1))
    stop = data.draw(st.integers(start + 1, num_layers))
    ran: dict[str, list[int]] = {row.request_id: [] for row in rows}
    last = start
    for cut in cut_layers(bands, start, stop):
        assert last <= cut.layer_start < cut.layer_stop <= stop
        last = cut.layer_stop
        assert cut.bands == sorted(cut.bands), "in the order of the batch"
        for index in cut.bands:
            for row in bands[index].rows:
                ran[row.request_id] += range(cut.layer_start, cut.layer_stop)
    for row in rows:
        own = range(max(start, row.layer_start), min(stop, row.layer_stop))
        assert ran[row.request_id] == list(own)
    crossing = [row for band in bands if band.crosses(stop) for row in band.rows]
    assert crossing == [row for row in rows if row.layer_start <= stop < row.layer_stop]


@given(models_and_layouts(), st.data())
def test_a_wave_in_groups_costs_what_it_costs_at_once(
    given_model: tuple[Any, ParallelLayout], data: st.DataObject
) -> None:
    """But for the steps' own overhead: the same rows through groups of layers, step by step."""
    spec, layout = given_model
    num_layers, timer = spec.num_hidden_layers, timer_of(spec, layout)
    rows = [
        Row("x", data.draw(st.integers(0, 30)), data.draw(st.integers(1, 9)), 0, num_layers, True)
        for _ in range(data.draw(st.integers(1, 4)))
    ]
    whole = timer.times(rows)
    ends = sorted(data.draw(st.sets(st.integers(1, num_layers), max_size=4)) | {num_layers})
    parts = [
        timer.times([row._replace(layer_start=first, layer_stop=stop) for row in rows])
        for first, stop in zip([0, *ends], ends, strict=False)
    ]
    for stage, seconds in enumerate(whole.stages_s):
        total = sum(one.stages_s[stage] - DEVICE["step_overhead_s"] for one in parts)
        computed_s = seconds - DEVICE["step_overhead_s"]
        if layout.tp == 1:
            assert total == pytest.approx(computed_s)
        # Parts of which different ranks have most to do take longer one by one.
        assert total >= computed_s * (1 - 1e-9)
    assert sum(one.expert_loads for one in parts) == pytest.approx(whole.expert_loads)
    for stage, tokens in enumerate(whole.handed_over):
        assert sum(one.handed_over[stage] for one in parts) == tokens
    assert timer.slowest(rows).total_s == pytest.approx(max(whole.stages_s))


def test_layers_that_nobody_runs_cost_nothing_and_decodes_all_of_theirs() -> None:
    spec = make_model(layers=6)
    timer = timer_of(spec, ParallelLayout(pp=2))
    decode = Row("d", 20, 1, 0, 6, True)
    wave = Row("w", 0, 9, 0, 3, False)
    alone, part = timer.times([decode]), timer.times([wave])
    assert part.stages_s[1] == DEVICE["step_overhead_s"]
    assert part.handed_over == [0], "it stays before the second stage"
    both = timer.times([decode, wave])
    assert both.stages_s[1] == alone.stages_s[1]
    assert alone.stages_s[0] < both.stages_s[0] < alone.stages_s[0] + part.stages_s[0]
    later = timer.times([decode, wave._replace(layer_start=3, layer_stop=6, samples=True)])
    assert later.stages_s[0] == alone.stages_s[0]
    assert later.handed_over == [10]


def passes(policy: str, options: dict[str, Any], prompt: int, decodes: int) -> float:
    """Reads of experts while a prompt is under way beside decodes: 1 = each one of a layer once."""
    spec = make_model(
        layers=12, sparse=True, num_experts=32, num_experts_per_tok=4, moe_intermediate_size=16
    )
    timer = timer_of(spec, ParallelLayout())
    config = SchedulerConfig(
        **CONFIG
        | {
            "num_layers": 12, "num_blocks": 4000, "max_model_len": 9000, "max_num_seqs": 256,
            "max_num_batched_tokens": 9000, "debug": False, "enable_prefix_caching": False,
        }
    )  # fmt: skip
    scheduler = Scheduler(config, policies.make(policy, options))
    for index in range(decodes):
        add(scheduler, f"d{index}", [7], max_tokens=1000)
    update(scheduler, step_of(scheduler))
    request = add(scheduler, "prompt", prompt_of(prompt), max_tokens=2)
    total = 0.0
    while not request.num_output_tokens:
        step = step_of(scheduler)
        total += timer.times(step.rows).expert_loads
        update(scheduler, step)
    return total / (12 * 32)


def test_experts_are_read_as_the_closed_form_says() -> None:
    seed = random.randrange(2**32)
    print(f"seed={seed}")
    rng = random.Random(seed)
    load = expert_load(32, 4, 1)

    def coverage(prompt: int, decodes: int) -> float:
        return load.touched(prompt + decodes, prompt) / 32

    for _ in range(4):
        chunk, decodes = rng.randint(16, 600), rng.randint(1, 100)
        groups = rng.randint(1, 12)
        prompt = chunk * groups - rng.randrange(chunk // 2)
        chunked = passes("continuous", {"max_prefill_chunk": chunk}, prompt, decodes)
        assert chunked == pytest.approx(chunked_passes(coverage, prompt, chunk, decodes))
        layered = passes("layered-prefill", {"group_tokens": chunk}, prompt, decodes)
        assert layered == pytest.approx(layered_passes(coverage, prompt, groups, decodes))
        assert layered <= chunked * (1 + 1e-9)


def test_no_experts_no_reads() -> None:
    timer = timer_of(make_model(layers=3), ParallelLayout())
    assert timer.times([Row("a", 0, 5, 0, 3, True)]).expert_loads == 0
    assert timer.costs.stage_layers(0) == Range(0, 3)
