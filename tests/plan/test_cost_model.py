"""Each term of a step's cost against arithmetic written here, by tensors, heads and single keys."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seesaw.families.spec import ModelSpec
from seesaw.layout import ParallelLayout, rank_ranges
from seesaw.plan.cost_model import CostModel
from seesaw.plan.curve import Curve
from seesaw.plan.work import Work
from tests.layout.models import make_model
from tests.plan.costs import (
    Row,
    alone,
    costs_of,
    matrix_elements,
    models_and_layouts,
    rates,
    rows_of_steps,
    work_of,
)
from tests.plan.devices import make_device, make_links, make_machine


@given(models_and_layouts(sparse=False), rows_of_steps, rates, rates, rates, st.integers(0, 7))
def test_matrix_products_are_the_slower_of_reading_and_computing(
    case: tuple[ModelSpec, ParallelLayout], rows: list[Row], flops: float, row_flops: float,
    memory: float, rank: int,
) -> None:  # fmt: skip
    spec, layout = case
    rank %= layout.num_ranks
    stage = layout.coordinates(rank).pp
    work = work_of(spec, rows)
    costs = alone(
        spec, layout, rank, flops=flops, memory_bytes_per_s=memory,
        row_matmul_flops={"float16": Curve.flat(row_flops)},
    )  # fmt: skip
    column_elements, row_elements = matrix_elements(spec, layout, rank)
    products = [
        (column_elements, work.num_tokens, flops),
        (row_elements, work.num_tokens, row_flops),
    ]
    if stage == layout.pp - 1:
        vocab = rank_ranges(layout, spec, rank).vocab.size
        products.append((vocab * spec.hidden_size, work.num_sampled, flops))
    read_s = computed_s = 0.0
    for elements, tokens, rate in products:
        if tokens:
            one, other = 2 * elements / memory, 2 * elements * tokens / rate
            read_s += one if one >= other else 0.0
            computed_s += other if one < other else 0.0
    found = costs.stage(stage, work)
    assert found.weights_s == pytest.approx(read_s)
    assert found.matmul_s == pytest.approx(computed_s)
    assert found.total_s == pytest.approx(read_s + computed_s)


@given(models_and_layouts(), rows_of_steps, rates, rates, st.integers(0, 7), st.data())
def test_attention_by_query_heads_and_keys(
    case: tuple[ModelSpec, ParallelLayout], rows: list[Row], flops: float, kv_rate: float,
    rank: int, data: st.DataObject,
) -> None:  # fmt: skip
    """4 * head_dim operations per (query head, query, key); K and V of each key are read once. One
    window for all layers, as steps are described by the mean layer."""
    spec, layout = case
    window = data.draw(st.none() | st.integers(1, 30))
    spec = replace(spec, layers=tuple(replace(x, sliding_window=window) for x in spec.layers))
    rank %= layout.num_ranks
    ranges = rank_ranges(layout, spec, rank)
    kv_bytes = data.draw(st.sampled_from([None, 1, 4]))
    costs = CostModel(
        spec,
        make_machine(
            [make_device(attention_flops=flops, kv_bytes_per_s=kv_rate) if r == rank
             else make_device() for r in range(layout.num_ranks)]
        ),
        layout, "float16", kv_bytes=kv_bytes,
    )  # fmt: skip
    operations = chunk_bytes = decode_bytes = 0
    for queries, keys, _ in rows:
        seen = [
            {key for key in range(query + 1) if window is None or query - key < window}
            for query in range(keys - queries, keys)
        ]
        touched = len(set.union(*seen)) * 2 * ranges.kv_heads.size * spec.head_dim * (kv_bytes or 2)
        if queries == 1:
            decode_bytes += touched
        else:
            chunk_bytes += touched
            pairs = sum(map(len, seen))
            operations += pairs * ranges.query_heads.size * 4 * spec.head_dim
    layers = ranges.layers.size
    found = costs.stage(layout.coordinates(rank).pp, work_of(spec, rows))
    assert found.attention_s == pytest.approx(
        layers * max(operations / flops, chunk_bytes / kv_rate)
    )
    assert found.kv_s == pytest.approx(layers * decode_bytes / kv_rate)
    assert found.total_s == pytest.approx(found.attention_s + found.kv_s)


@given(models_and_layouts(), rows_of_steps, rates, st.floats(0, 1))
def test_all_reduces_two_in_a_layer_one_for_the_embedding_one_to_sample(
    case: tuple[ModelSpec, ParallelLayout], rows: list[Row], bus: float, latency: float
) -> None:
    spec, layout = case
    links = make_links(bus=bus, latency_s=Curve((1.0,), (latency,)))
    costs = costs_of(spec, layout, make_machine(make_device(), layout.num_ranks, links))
    work = work_of(spec, rows)
    hidden_bytes, tp = work.num_tokens * spec.hidden_size * 2, layout.tp
    one_s = latency + 2 * (tp - 1) * hidden_bytes / tp / bus
    for stage in range(layout.pp):
        layers = rank_ranges(layout, spec, stage * tp).layers.size
        expected = (2 * layers + (stage == 0)) * one_s
        if stage == layout.pp - 1 and work.num_sampled:
            expected += latency + 2 * (tp - 1) * 16 * work.num_sampled / tp / bus
        found = costs.stage(stage, work)
        assert found.total_s == found.all_reduce_s
        assert found.all_reduce_s == pytest.approx(expected if tp > 1 else 0.0)


@given(models_and_layouts(), rows_of_steps, st.floats(0.1, 50.0))
def test_a_row_with_one_query_costs_some_keys_more(
    case: tuple[ModelSpec, ParallelLayout], rows: list[Row], extra: float
) -> None:
    """Rows with several queries do not, in a step of their own."""
    spec, layout = case
    spec = replace(spec, layers=tuple(replace(x, sliding_window=None) for x in spec.layers))
    bare, padded = (
        costs_of(spec, layout, make_device(kv_bytes_per_s=1e3, row_overhead_keys=keys))
        for keys in (0.0, extra)
    )
    one, several = ([row for row in rows if (row[0] == 1) == alone] for alone in (True, False))
    for stage in range(layout.pp):
        work = work_of(spec, one)
        keys = sum(row[1] for row in one)
        expected = bare.stage(stage, work).kv_s
        if one:
            expected *= (keys + extra * len(one)) / keys
        assert padded.stage(stage, work).kv_s == pytest.approx(expected)
        work = work_of(spec, several)
        assert padded.stage(stage, work).total_s == bare.stage(stage, work).total_s
        # In a mixed step rows of several queries add nothing either.
        mixed, alone = work_of(spec, [*one, *several]), work_of(spec, one)
        assert padded.stage(stage, mixed).kv_s == padded.stage(stage, alone).kv_s


@given(models_and_layouts(), st.integers(2, 60), st.integers(0, 60), st.integers(1, 5))
def test_attention_is_as_fast_as_measured_for_so_many_pairs_per_key(
    case: tuple[ModelSpec, ParallelLayout], queries: int, before: int, count: int
) -> None:
    spec, layout = case
    spec = replace(spec, layers=tuple(replace(x, sliding_window=None) for x in spec.layers))
    work = work_of(spec, [(queries, queries + before, False)] * count)
    pairs = sum(before + query + 1 for query in range(queries)) / (queries + before)
    curve = Curve.of([(1, 10.0), (pairs + 1, 10.0 * (pairs + 1))], "a rate that is 10 times x")
    measured = costs_of(
        spec, layout, make_device(attention_flops=1e-9, attention_flops_by_share=curve)
    )
    flat = costs_of(spec, layout, make_device(attention_flops=10.0 * pairs))
    for stage in range(layout.pp):
        found = measured.stage(stage, work).attention_s
        assert found == pytest.approx(flat.stage(stage, work).attention_s)


@given(models_and_layouts(), rows_of_steps)
def test_overheads_are_of_steps_layers_and_rows(
    case: tuple[ModelSpec, ParallelLayout], rows: list[Row]
) -> None:
    spec, layout = case
    costs = costs_of(
        spec, layout,
        make_device(step_overhead_s=1000.0, layer_overhead_s=10.0, step_row_overhead_s=0.1),
    )  # fmt: skip
    for stage in range(layout.pp):
        layers = rank_ranges(layout, spec, stage * layout.tp).layers.size
        found = costs.stage(stage, work_of(spec, rows))
        assert found.total_s == pytest.approx(1000 + layers * 10 + 0.1 * len(rows))
        assert costs.stage(stage, Work()).total_s == 1000


def test_elementwise_passes_follow_tokens_and_the_width_of_the_part() -> None:
    """Twice the tokens of every kind take twice as long; half the heads and columns, less."""
    spec = make_model(layers=2)
    device = make_device(elementwise_bytes_per_s=1.0)
    one, two = ([(1, 5, True)] * count for count in (3, 6))
    whole = costs_of(spec, ParallelLayout(), device)
    first, second = (whole.stage(0, work_of(spec, rows)).total_s for rows in (one, two))
    assert second == pytest.approx(2 * first)
    half = costs_of(spec, ParallelLayout(tp=2), device).stage(0, work_of(spec, one)).total_s
    assert first / 2 < half < first


def test_efficiency_depends_on_rows() -> None:
    """A product of 4 rows runs at another rate than one of 2, the head of 1 row at its own."""
    spec = make_model(layers=1, vocab=100, hidden=64)
    curve = Curve.of([(1, 1.0), (2, 4.0), (4, 16.0)], "rate")
    costs = costs_of(spec, ParallelLayout(), make_device(matmul_flops={"float16": curve}))
    columns, rows = matrix_elements(spec, ParallelLayout(), 0)
    for tokens, rate in ((2, 4.0), (4, 16.0), (9, 16.0)):
        found = costs.stage(0, work_of(spec, [(tokens, tokens, True)]))
        expected = 2 * (columns + rows) * tokens / rate + 2 * 100 * 64
        assert found.matmul_s == pytest.approx(expected)


def test_sends_stores_loads_and_transitions() -> None:
    spec, layout = make_model(hidden=64), ParallelLayout(pp=2)
    links = make_links(send=100.0, send_latency_s=3.0, peer=50.0)
    devices = [
        make_device(load_bytes_per_s=10.0, store_bytes_per_s=20.0, copy_bytes_per_s=40.0),
        make_device(load_bytes_per_s=30.0, store_bytes_per_s=60.0, copy_bytes_per_s=80.0),
    ]
    costs = costs_of(spec, layout, make_machine(devices, links=links))
    assert costs.send_s(5) == 3 + 5 * 64 * 2 / 100
    assert [costs.load_bytes_per_s(rank) for rank in (0, 1)] == [10, 30]
    assert [costs.store_bytes_per_s(rank) for rank in (0, 1)] == [20, 60]
    sources = {"resident": 10**9, "host": 600, "peer": 100, "copy": 800}
    assert costs.transition_s(0, sources) == 600 / 10 + 100 / 50 + 800 / 40  # type: ignore[arg-type]
    assert costs.transition_s(1, sources) == 600 / 30 + 100 / 50 + 800 / 80  # type: ignore[arg-type]
    assert costs.transition_s(0, {}) == 0
    # A host that gives all devices together 40 bytes a second gives each 20.
    shared = costs_of(spec, layout, make_machine(devices, links=links, host_bytes_per_s=40.0))
    assert [shared.load_bytes_per_s(rank) for rank in (0, 1)] == [10, 20]
    assert [shared.store_bytes_per_s(rank) for rank in (0, 1)] == [20, 20]
    assert shared.transition_s(1, {"host": 600}) == 30


def test_measured_all_reduces_go_before_the_formula() -> None:
    links = make_links(
        bus=1.0, latency_s=Curve.flat(5.0), measured={2: Curve.of([(10, 1), (1000, 7)], "s")}
    )
    assert links.all_reduce_s(2, 10) == 1
    assert links.all_reduce_s(2, 1) == 1
    assert links.all_reduce_s(2, 1000) == pytest.approx(7)
    assert links.all_reduce_s(2, 5000) == pytest.approx(35)
    assert links.all_reduce_s(4, 10) == 5 + 2 * 3 / 4 * 10
    assert links.all_reduce_s(1, 10) == links.all_reduce_s(2, 0) == 0
