"""Stages of balanced layers: against every cut there is, and where the planner takes them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from seesaw.config import EngineConfig
from seesaw.layout import ParallelLayout, Range
from seesaw.plan.estimate import name_of
from seesaw.plan.machine_files import read_machines
from seesaw.plan.search import EQUAL, search
from seesaw.plan.stages import balanced
from seesaw.plan.workload import parse_workload
from tests.layout.models import models
from tests.plan.costs import costs_of, rates, rows_of_steps, work_of
from tests.plan.devices import make_device, make_machine
from tests.plan.models import spec_of


@settings(max_examples=60)
@given(models(), st.integers(2, 4), st.sampled_from([1, 2]), rows_of_steps, st.data())
def test_no_other_cut_has_a_faster_slowest_stage(
    spec, pp: int, tp: int, rows, data: st.DataObject
) -> None:
    assume(pp <= spec.num_hidden_layers)
    assume(tp <= min(spec.num_attention_heads, spec.num_experts or 99))
    layout = ParallelLayout(tp=tp, pp=pp)
    one = make_device(memory_bytes_per_s=data.draw(rates), layer_overhead_s=data.draw(rates) / 1e9)
    other = make_device(flops=data.draw(rates), kv_bytes_per_s=data.draw(rates))
    machine = make_machine(
        data.draw(st.lists(st.sampled_from([one, other]), min_size=tp * pp, max_size=tp * pp))
    )
    work = work_of(spec, rows)

    def slowest(candidate: ParallelLayout) -> float:
        return max(costs_of(spec, candidate, machine).stages_s(work))

    found = balanced(costs_of(spec, layout, machine), work)
    assert (found.tp, found.pp) == (tp, pp)
    cuts = [
        replace(layout, stages=sizes)
        for sizes in itertools.product(range(1, spec.num_hidden_layers + 1), repeat=pp)
        if sum(sizes) == spec.num_hidden_layers
    ]
    assert slowest(found) == pytest.approx(min(map(slowest, cuts)), rel=1e-9)
    if slowest(layout) <= slowest(found) * (1 + 1e-9):
        assert found == layout


def test_the_head_takes_layers_from_the_last_stage() -> None:
    spec = spec_of("tiny", num_hidden_layers=12)
    costs = costs_of(spec, ParallelLayout(pp=2), make_device(memory_bytes_per_s=1.0))
    work = work_of(spec, [(1, 10, True)] * 8)
    one, two = (costs.stage_s(0, Range(0, size), work) for size in (1, 2))
    head = 2 * spec.vocab_size * spec.hidden_size
    share = (12 + head / (two - one)) / 2  # of layers, were there halves of them
    found = balanced(costs, work)
    assert abs(found.stages[0] - share) <= 0.5
    assert found.stages[0] > found.stages[1]


def test_the_planner_takes_other_stages_where_they_are_faster_only() -> None:
    seen = set()
    for vocabulary in (64, 49152):
        model = spec_of("tiny", num_hidden_layers=12, vocab_size=vocabulary)
        plan = search(
            model, read_machines("2xl4"), parse_workload("1024:128"), 64,
            EngineConfig(model="m", max_model_len=2048, max_num_seqs=8,
                         max_num_batched_tokens=1024),
        )  # fmt: skip
        by_name = {one.name: one for one in plan.candidates}
        for one in plan.candidates:
            given = [layout.stages for layout in (one.prefill, one.decode)]
            seen.add((vocabulary, any(given)))
            if any(given):
                equal = name_of(*(replace(x, stages=()) for x in (one.prefill, one.decode)))
                assert one.elapsed_s * EQUAL <= by_name[equal].elapsed_s * (1 + 1e-9)
    assert seen == {(64, False), (49152, False), (49152, True)}
