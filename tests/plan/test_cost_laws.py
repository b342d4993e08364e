"""What costs of a step obey, whatever the model: the paper's closed form, sums over ranks, and what
each axis of a layout divides."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seesaw.families.spec import ModelSpec
from seesaw.layout import ParallelLayout
from seesaw.plan.cost_model import StageTime
from seesaw.plan.machine import Device
from tests.layout.models import make_model
from tests.plan.costs import Row, alone, costs_of, models_and_layouts, rows_of_steps, work_of
from tests.plan.devices import make_device, make_links, make_machine


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("flops", [1e12, 1e18])
def test_equation_1_of_the_paper(phase: str, flops: float) -> None:
    """1 / throughput = L/b * [max(Wm/T, Wc/G) + max(Am, Ac)/G + N/(P*D)], table 3 with attention's
    operations corrected to 4 * d per (query head, query, key), on a stage without embedding and
    head. Prompts are long, so that s * (s + 1) / 2 is s * s / 2 within a part in 4000."""
    spec = make_model(layers=12, query_heads=8, kv_heads=4, mlp=96, head_dim=8, hidden=64)
    layout = ParallelLayout(tp=2, pp=4)
    ranks, stages, batch, length, element = 2, 4, 32, 4000, 2
    memory, kv_rate, bus = 1e9, 2e9, 1e7
    costs = costs_of(
        spec, layout,
        make_machine(
            make_device(flops=flops, memory_bytes_per_s=memory, attention_flops=flops,
                        kv_bytes_per_s=kv_rate),
            8, make_links(bus=bus),
        ),
    )  # fmt: skip
    heads, kv_heads, dim = 8, 4, 8
    hidden = heads * dim
    weights = hidden * (heads + 2 * kv_heads) * dim + hidden * hidden + 3 * hidden * 96
    all_reduce = bus * ranks / (2 * (ranks - 1))
    if phase == "prefill":
        tokens = batch * length
        operations, keys = 4 * heads * dim * batch * length**2 / 2, batch * length
        rows: list[Row] = [(length, length, False)] * (batch // stages)
    else:
        tokens = batch
        operations, keys = 0.0, batch * length  # bound by keys and values
        rows = [(1, length, False)] * (batch // stages)
    term_w = element * weights / memory
    term_c = 2 * tokens * weights / flops
    term_a = max(2 * element * keys * kv_heads * dim / kv_rate, operations / flops)
    term_n = 2 * element * tokens * hidden / all_reduce
    all_devices = ranks * stages
    expected = (
        spec.num_hidden_layers
        / batch
        * (max(term_w / ranks, term_c / all_devices) + term_a / all_devices + term_n / stages)
    )
    stage_s = costs.stage(1, work_of(spec, rows)).total_s
    assert stage_s / (batch / stages) == pytest.approx(expected, rel=1e-3)


@given(models_and_layouts(), rows_of_steps)
def test_parts_of_all_ranks_are_the_model(
    case: tuple[ModelSpec, ParallelLayout], rows: list[Row]
) -> None:
    """Weights read and operations done, summed over stages and their ranks, are those of the
    checkpoint's matrices: more only by routers and K and V heads that several ranks hold, and by
    the busiest rank of experts that others wait for."""
    spec, layout = case
    rows = [(queries, keys, True) for queries, keys, _ in rows]
    work = work_of(spec, rows)
    read = computed = 0.0
    for rank in range(layout.num_ranks):
        stage = layout.coordinates(rank).pp
        reads = alone(spec, layout, rank, memory_bytes_per_s=1.0)
        read += reads.stage(stage, work).weights_s / 2
        computed += alone(spec, layout, rank, flops=1.0).stage(stage, work).matmul_s / 2
    head = spec.vocab_size * spec.hidden_size
    dense = experts = 0
    for param in spec.params:
        if param.layer is not None and len(param.shape) == 2:
            size, copies = math.prod(param.shape), 1
            if param.split_dim == "kv_heads":
                copies = max(1, layout.tp / spec.num_key_value_heads)
            elif param.name.endswith("mlp.gate.weight"):
                copies = layout.tp
            if param.expert is None:
                dense += size * copies
            else:
                experts += size
    share = spec.num_experts_per_tok / max(1, spec.num_experts)
    operations = work.num_tokens * dense + work.num_sampled * head
    expected_experts = work.num_tokens * experts * share
    if not spec.num_experts or layout.tp == 1:
        assert computed == pytest.approx(operations + expected_experts, rel=1e-6)
    else:
        assert computed >= (operations + expected_experts) * (1 - 1e-9)
    if not spec.num_experts:
        assert read == pytest.approx(dense + head)
    else:
        # Of experts at least those of one token, at most all, on as many ranks as hold the most.
        widest = math.ceil(spec.num_experts / layout.tp) * layout.tp / spec.num_experts
        assert read >= (dense + head + experts * share) * (1 - 0.05)
        assert read <= (dense + head + experts * widest) * (1 + 1e-9)


@given(models_and_layouts(), rows_of_steps)
def test_twice_the_rate_is_half_the_term(
    case: tuple[ModelSpec, ParallelLayout], rows: list[Row]
) -> None:
    spec, layout = case
    work = work_of(spec, rows)

    def times(factor: float) -> list[StageTime]:
        device = make_device(
            flops=5e3 * factor, memory_bytes_per_s=1e3 * factor, kv_bytes_per_s=2e3 * factor,
            attention_flops=3e4 * factor, elementwise_bytes_per_s=1e5 * factor,
        )  # fmt: skip
        links = make_links(bus=1e4 * factor)
        costs = costs_of(spec, layout, make_machine(device, layout.num_ranks, links))
        return [costs.stage(stage, work) for stage in range(layout.pp)]

    for slow, fast in zip(times(1), times(2), strict=True):
        for field in fields(StageTime):
            one, other = getattr(slow, field.name), getattr(fast, field.name)
            assert one == pytest.approx(2 * other), field.name


def test_tensor_parallelism_divides_weights_but_no_all_reduce() -> None:
    spec = make_model(layers=2, query_heads=16, kv_heads=8, mlp=128, vocab=512)
    work = work_of(spec, [(1, 9, True)] * 4)
    device = make_device(memory_bytes_per_s=1.0)
    found = {}
    for tp in (1, 2, 4, 8):
        machine = make_machine(device, tp, make_links(bus=1.0))
        found[tp] = costs_of(spec, ParallelLayout(tp=tp), machine).stage(0, work)
    for tp in (2, 4, 8):
        assert found[tp].weights_s == pytest.approx(found[1].weights_s / tp)
    assert found[1].all_reduce_s == 0
    assert found[2].all_reduce_s < found[4].all_reduce_s < found[8].all_reduce_s


def test_uneven_cuts_take_as_long_as_the_widest_rank() -> None:
    """9 query and 3 KV heads on 2 ranks are 6 / 2 and 3 / 1; the MLP is cut evenly."""
    spec = make_model(layers=2, query_heads=9, kv_heads=3, mlp=96)
    layout = ParallelLayout(tp=2)
    work = work_of(spec, [(1, 9, False), (5, 9, False)])
    slow = {"memory_bytes_per_s": 1.0, "kv_bytes_per_s": 1.0, "attention_flops": 1.0}
    wide, narrow = (alone(spec, layout, rank, **slow).stage(0, work) for rank in (0, 1))
    assert costs_of(spec, layout, make_device(**slow)).stage(0, work) == wide
    assert wide.kv_s == 2 * narrow.kv_s
    assert wide.attention_s == 2 * narrow.attention_s
    assert narrow.weights_s < wide.weights_s < 2 * narrow.weights_s


def test_head_and_embedding_are_on_the_last_and_first_stage() -> None:
    spec = make_model(layers=6, vocab=5000)
    costs = costs_of(
        spec, ParallelLayout(pp=3),
        make_device(memory_bytes_per_s=1.0, elementwise_bytes_per_s=1.0),
    )  # fmt: skip
    rows = [(4, 4, False), (4, 4, True)]
    first, middle, last = (costs.stage(stage, work_of(spec, rows)) for stage in range(3))
    assert first.weights_s == middle.weights_s
    assert last.weights_s - middle.weights_s == 2 * 5000 * spec.hidden_size
    assert first.elementwise_s > middle.elementwise_s
    assert last.elementwise_s > middle.elementwise_s
    unsampled = work_of(spec, [(4, 4, False)] * 2)
    assert costs.stage(2, unsampled) == costs.stage(1, unsampled)


@given(models_and_layouts(), rows_of_steps, st.integers(0, 7), st.sampled_from([2.0, 3.5]))
def test_of_unequal_devices_the_slowest_decides(
    case: tuple[ModelSpec, ParallelLayout], rows: list[Row], rank: int, factor: float
) -> None:
    """Each stage takes as long as its slowest rank would take among equals of its own, however
    fast the others are; no stage gets faster when a device gets slower."""
    spec, layout = case
    rank %= layout.num_ranks
    work = work_of(spec, rows)

    def device(factor: float) -> Device:
        return make_device(
            flops=9e4 / factor, memory_bytes_per_s=1e4 / factor, attention_flops=3e5 / factor,
            kv_bytes_per_s=2e4 / factor, elementwise_bytes_per_s=1e5 / factor,
            layer_overhead_s=0.1 * factor,
        )  # fmt: skip

    normal, slow = device(1.0), device(factor)
    mixed = [slow if r == rank else normal for r in range(layout.num_ranks)]
    found = costs_of(spec, layout, make_machine(mixed)).stages_s(work)
    equal = costs_of(spec, layout, normal).stages_s(work)
    own = [slow if r == rank else make_device() for r in range(layout.num_ranks)]
    slowest = costs_of(spec, layout, make_machine(own)).stages_s(work)
    at = layout.coordinates(rank).pp
    for stage in range(layout.pp):
        if stage == at:
            assert found[stage] >= equal[stage]
            assert found[stage] >= slowest[stage] * (1 - 1e-9)
            assert found[stage] == pytest.approx(max(equal[stage], slowest[stage]))
        else:
            assert found[stage] == equal[stage]


@given(models_and_layouts(), rows_of_steps)
def test_all_stages_at_once_are_each_by_itself(
    case: tuple[ModelSpec, ParallelLayout], rows: list[Row]
) -> None:
    spec, layout = case
    costs = costs_of(spec, layout, make_device(memory_bytes_per_s=1.0, layer_overhead_s=1.0))
    work = work_of(spec, rows)
    assert costs.stages_s(work) == [costs.stage(s, work).total_s for s in range(layout.pp)]
