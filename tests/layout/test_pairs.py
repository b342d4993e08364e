"""Which layouts are offered, and which pairs are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seesaw.errors import ConfigError
from seesaw.families.spec import ModelSpec
from seesaw.layout import ParallelLayout, check_fits, check_pair, layouts_for
from tests.layout.models import make_model, models


def parse(text: str) -> ParallelLayout:
    return ParallelLayout.parse(text)


@given(models(), st.integers(1, 24), st.none() | st.integers(1, 4))
def test_layouts_for_are_all_that_fit_and_no_others(
    spec: ModelSpec, num_devices: int, dp: int | None
) -> None:
    expected = set()
    for replicas in range(1, num_devices + 1) if dp is None else [dp]:
        for tp in range(1, num_devices + 1):
            for pp in range(1, num_devices + 1):
                layout = ParallelLayout(replicas, tp, pp)
                try:
                    check_fits(layout, spec)
                except ConfigError:
                    continue
                if layout.num_ranks == num_devices:
                    expected.add(layout)
    found = layouts_for(num_devices, spec, dp)
    assert len(found) == len(set(found))
    assert set(found) == expected


@pytest.mark.parametrize(
    ("prefill", "decode"), [("pp2", "tp2"), ("dp2-tp2", "dp2-pp2"), ("tp4", "tp4"), ("dp3", "dp3")]
)
def test_pairs_over_the_same_devices_are_accepted(prefill: str, decode: str) -> None:
    check_pair(parse(prefill), parse(decode), make_model())


@pytest.mark.parametrize(
    ("prefill", "decode", "says"),
    [
        (
            "pp2",
            "tp4",
            "prefill_layout dp1-tp1-pp2 takes 2 devices and decode_layout dp1-tp4-pp1 takes 4: "
            "expected as many, since both run on the same devices. "
            "decode_layout beside dp1-tp1-pp2 could be dp1-tp1-pp2, dp1-tp2-pp1; "
            "prefill_layout beside dp1-tp4-pp1 could be dp1-tp1-pp4, dp1-tp2-pp2, dp1-tp4-pp1.",
        ),
        (
            "dp2",
            "tp2",
            "prefill_layout dp2-tp1-pp1 has dp=2 and decode_layout dp1-tp2-pp1 has dp=1: expected "
            "the same number of replicas, since a request stays in its replica. "
            "decode_layout beside dp2-tp1-pp1 could be dp2-tp1-pp1; "
            "prefill_layout beside dp1-tp2-pp1 could be dp1-tp1-pp2, dp1-tp2-pp1.",
        ),
        ("pp5", "tp5", "layout dp1-tp1-pp5: 4 layers make 4 stages at most"),
        ("pp3", "tp9", "layout dp1-tp9-pp1: LlamaForCausalLM with 8 query heads"),
    ],
)
def test_other_pairs_are_refused_with_what_would_work(prefill: str, decode: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_pair(parse(prefill), parse(decode), make_model(layers=4))
    assert says in str(caught.value)


def test_a_replica_is_the_layout_with_one() -> None:
    assert parse("dp3-tp2-pp2").replica == parse("tp2-pp2")
    assert parse("tp2").replica == parse("tp2")
