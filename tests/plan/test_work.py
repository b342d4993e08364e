"""Counts of a step's work against counting every (query, key) of every layer."""

from __future__ import annotations

from dataclasses import astuple, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seesaw.families.spec import LayerSpec, ModelSpec
from seesaw.plan.work import Work, WorkCounter
from tests.layout.models import make_model

Row = tuple[int, int, bool]

rows_of_steps = st.lists(
    st.tuples(st.integers(1, 12), st.integers(0, 40), st.booleans()).map(
        lambda row: (row[0], row[0] + row[1], row[2])
    ),
    max_size=6,
)
windows = st.lists(st.none() | st.integers(1, 30), min_size=1, max_size=5)


def windowed(kinds: list[int | None]) -> ModelSpec:
    spec = make_model(layers=len(kinds))
    return replace(spec, layers=tuple(LayerSpec(kind, spec.layers[0].rope) for kind in kinds))


def count_one_by_one(kinds: list[int | None], rows: list[Row]) -> Work:
    """Query i of a row stands at position keys - queries + i and sees itself and what is before it,
    of a window's size at most."""
    work = Work(sum(row[0] for row in rows), len(rows), sum(row[2] for row in rows))
    work.num_decodes = sum(row[0] == 1 for row in rows)
    for window in kinds:
        for queries, keys, _ in rows:
            seen = [
                (query, key)
                for query in range(keys - queries, keys)
                for key in range(keys)
                if key <= query and (window is None or query - key < window)
            ]
            if queries == 1:
                work.decode_keys += len(seen) / len(kinds)
            else:
                work.pairs += len(seen) / len(kinds)
                work.chunk_keys += len({key for _, key in seen}) / len(kinds)
    return work


@given(windows, rows_of_steps)
def test_counts_are_those_of_all_queries_and_keys(kinds: list[int | None], rows: list[Row]) -> None:
    found = WorkCounter(windowed(kinds)).count(rows)
    assert astuple(found) == pytest.approx(astuple(count_one_by_one(kinds, rows)))


@given(windows, rows_of_steps)
def test_columns_say_the_same_as_rows(kinds: list[int | None], rows: list[Row]) -> None:
    counter = WorkCounter(windowed(kinds))
    found = counter.count_columns(
        [queries for queries, _, _ in rows],
        [keys - queries for queries, keys, _ in rows],
        sum(samples for _, _, samples in rows),
    )
    assert found == counter.count(rows)


@given(windows, st.integers(2, 40), st.data())
def test_chunks_of_a_prompt_add_up_to_its_pairs(
    kinds: list[int | None], length: int, data: st.DataObject
) -> None:
    """Whatever the cut; a chunk of one query reads its keys as a decode row does."""
    counter = WorkCounter(windowed(kinds))
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1))))
    parts = [
        counter.count([(stop - start, stop, False)])
        for start, stop in zip([0, *cuts], [*cuts, length], strict=True)
    ]
    whole = counter.count([(length, length, True)])
    assert sum(part.pairs + part.decode_keys for part in parts) == pytest.approx(whole.pairs)
    assert sum(part.num_tokens for part in parts) == whole.num_tokens == length


def test_a_step_without_rows_is_no_work() -> None:
    assert WorkCounter(make_model()).count([]) == Work()


def test_counts_by_hand() -> None:
    """A chunk in the middle of a prompt, a decode row and the first token of all."""
    rows = [(3, 10, False), (1, 7, True), (1, 1, True)]
    full = WorkCounter(windowed([None])).count(rows)
    assert full == Work(5, 3, 2, pairs=8 + 9 + 10, chunk_keys=10, decode_keys=8, num_decodes=2)
    half = WorkCounter(windowed([None, 4])).count(rows)
    assert half == Work(5, 3, 2, pairs=(27 + 12) / 2, chunk_keys=(10 + 6) / 2,
                        decode_keys=(8 + 5) / 2, num_decodes=2)  # fmt: skip
