"""Slices of the panel format against columns counted one by one, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seesaw.families.spec import ModelSpec
from seesaw.layout import PanelFormat, ParallelLayout, PlainFormat, panels_suit
from seesaw.layout.format import StoredParam
from seesaw.layout.formats import format_name, make_format
from seesaw.layout.ranges import RankRanges
from tests.layout.models import (
    all_ranges,
    make_model,
    panel_models_and_pairs,
)

Case = tuple[ModelSpec, ParallelLayout, ParallelLayout]
PAD = -1


def columns_of(spec: ModelSpec, param: StoredParam) -> list[int]:
    """What rank-independent thing each column belongs to: query head, KV head (both counted from
    0 through the model, KV heads after query heads), MLP column, row; PAD where there is none."""
    group = spec.num_attention_heads // spec.num_key_value_heads
    step = -(-spec.head_dim // 32) * 32
    if "qkv_proj" in param.name:
        heads = [
            head
            for kv in range(spec.num_key_value_heads)
            for head in (*range(kv * group, (kv + 1) * group), *[spec.num_attention_heads + kv] * 2)
        ]
        pads = [PAD] * (step - spec.head_dim)
        return [column for head in heads for column in [head] * spec.head_dim + pads]
    if "gate_up_proj" in param.name:
        size = spec.moe_intermediate_size if param.cut == "experts" else spec.intermediate_size
        return [
            column if column < size else PAD
            for tile in range(-(-size // 16))
            for _ in ("gate", "up")
            for column in range(tile * 16, tile * 16 + 16)
        ]
    size = spec.vocab_size if param.cut == "vocab" else spec.hidden_size
    if param.name.endswith(".gate.weight"):
        size = spec.num_experts
    return [column if column < size else PAD for column in range(-(-size // 32) * 32)]


def held_columns(spec: ModelSpec, param: StoredParam, ranges: RankRanges) -> set[int]:
    if param.cut == "heads":
        kv_heads = (spec.num_attention_heads + head for head in range(*ranges.kv_heads))
        return {*range(*ranges.query_heads), *kv_heads}
    if param.cut == "gate_up":
        return set(range(*ranges.mlp))
    if param.cut == "vocab":
        return set(range(*ranges.vocab))
    if param.name.endswith(".gate.weight"):
        return set(range(spec.num_experts))
    return set(range(spec.hidden_size))


def rows_of_panels(spec: ModelSpec, param: StoredParam, ranges: RankRanges) -> list[int]:
    """The rows of 32 numbers that a rank needs, counted through the parameter."""
    if param.cut == "experts":
        experts, panels, depth, _ = param.shape
        assert experts == spec.num_experts
        assert panels == -(-len(columns_of(spec, param)) // 32), f"{param}: for its columns"
        assert depth == (
            spec.hidden_size if "gate_up" in param.name else spec.moe_intermediate_size
        )
        size = panels * depth
        return [expert * size + row for expert in range(*ranges.experts) for row in range(size)]
    panels, depth, _ = param.shape
    columns, held = columns_of(spec, param), held_columns(spec, param, ranges)
    inner = range(depth)
    if param.cut == "query":
        inner = range(*(head * spec.head_dim for head in ranges.query_heads))
    if param.cut == "mlp":
        inner = range(*ranges.mlp)
    found = []
    for panel in range(panels):
        real = {column for column in columns[panel * 32 : panel * 32 + 32] if column != PAD}
        assert real, f"{param} has a panel of pads"
        assert real <= held or not real & held, f"{param}: panel {panel} is cut"
        if real <= held:
            found += [panel * depth + k for k in inner]
    return found


@given(panel_models_and_pairs(), st.sampled_from([2, 4]))
def test_slices_hold_the_columns_that_a_rank_needs(case: Case, element_bytes: int) -> None:
    spec, layout, _ = case
    fmt = PanelFormat(spec, element_bytes)
    row_bytes = 32 * element_bytes
    for ranges in all_ranges(layout, spec):
        for param in fmt.params:
            if not fmt.holds(param, ranges) or param.order != "panels":
                continue
            runs = fmt.runs(param, ranges)
            assert all(run.start % row_bytes == run.size % row_bytes == 0 for run in runs)
            rows = [
                row
                for run in runs
                for row in range(run.start // row_bytes, (run.start + run.size) // row_bytes)
            ]
            assert rows == rows_of_panels(spec, param, ranges), param
            *experts, panels, depth, width = fmt.local_shape(param, ranges)
            assert experts == ([ranges.experts.size] if param.cut == "experts" else [])
            matrices = math.prod(experts)
            assert (matrices * panels * depth, width) == (len(rows), 32)
            window = fmt.window(param, ranges)
            shares_head = ranges.query_heads.size * spec.num_key_value_heads < (
                ranges.kv_heads.size * spec.num_attention_heads
            )
            if window is None:
                assert param.cut == "heads"
                assert shares_head
                continue
            # In 16-bit elements two k make two rows of 64 bytes: cut at even k only.
            assert element_bytes == 4 or not (window.start % 128 or depth % 2)
            *_, step, inner, one = window.strides
            assert (inner, one) == (32, 1)
            assert not experts or window.strides[0] == panels * step
            assert rows == [
                window.start // row_bytes + panel * step // 32 + k
                for panel in range(matrices * panels)
                for k in range(depth)
            ]


@given(panel_models_and_pairs(), st.sampled_from([2, 4]))
def test_biases_are_cut_as_the_columns_of_their_matrix(case: Case, element_bytes: int) -> None:
    spec, layout, _ = case
    fmt = PanelFormat(spec, element_bytes)
    params = {param.name: param for param in fmt.params}
    for ranges in all_ranges(layout, spec):
        for param in fmt.params:
            if not param.name.endswith(".bias") or not fmt.holds(param, ranges):
                continue
            weight = params[param.name.removesuffix("bias") + "weight"]
            panels = fmt.local_shape(weight, ranges)[0]
            assert fmt.local_shape(param, ranges) == (32 * panels,)
            columns = columns_of(spec, weight)
            assert param.shape == (len(columns),)
            held = held_columns(spec, weight, ranges)
            found = [
                column
                for run in fmt.runs(param, ranges)
                for column in columns[run.start // element_bytes :][: run.size // element_bytes]
            ]
            assert [c for c in found if c != PAD] == [c for c in columns if c in held]


def test_stored_shapes() -> None:
    spec = make_model(
        layers=1, query_heads=6, kv_heads=2, mlp=10, vocab=70, hidden=12, head_dim=16,
        attention_bias=True, mlp_bias=True, qk_norm=True, tie_word_embeddings=False,
    )  # fmt: skip
    layer = "model.layers.0."
    assert [tuple(param) for param in PanelFormat(spec, 2).params] == [
        ("model.embed_tokens.weight", None, (70, 12), "vocab", "rows"),
        (f"{layer}input_layernorm.weight", 0, (12,), "none", "rows"),
        (f"{layer}self_attn.qkv_proj.weight", 0, (10, 12, 32), "heads", "panels"),
        (f"{layer}self_attn.qkv_proj.bias", 0, (320,), "heads", "rows"),
        (f"{layer}self_attn.o_proj.weight", 0, (1, 96, 32), "query", "panels"),
        (f"{layer}self_attn.q_norm.weight", 0, (16,), "none", "rows"),
        (f"{layer}self_attn.k_norm.weight", 0, (16,), "none", "rows"),
        (f"{layer}post_attention_layernorm.weight", 0, (12,), "none", "rows"),
        (f"{layer}mlp.gate_up_proj.weight", 0, (1, 12, 32), "gate_up", "panels"),
        (f"{layer}mlp.gate_up_proj.bias", 0, (32,), "gate_up", "rows"),
        (f"{layer}mlp.down_proj.weight", 0, (1, 10, 32), "mlp", "panels"),
        (f"{layer}mlp.down_proj.bias", 0, (32,), "none", "rows"),
        ("model.norm.weight", None, (12,), "none", "rows"),
        ("lm_head.weight", None, (3, 12, 32), "vocab", "panels"),
    ]
    sparse = make_model(
        layers=2, sparse=[True, False], mlp=10, hidden=12, head_dim=16, num_experts=40,
        num_experts_per_tok=2, moe_intermediate_size=18,
    )  # fmt: skip
    found = [tuple(param) for param in PanelFormat(sparse, 4).params if ".mlp." in param.name]
    assert found == [
        (f"{layer}mlp.gate.weight", 0, (2, 12, 32), "none", "panels"),
        (f"{layer}mlp.experts.gate_up_proj.weight", 0, (40, 2, 12, 32), "experts", "panels"),
        (f"{layer}mlp.experts.down_proj.weight", 0, (40, 1, 18, 32), "experts", "panels"),
        ("model.layers.1.mlp.gate_up_proj.weight", 1, (1, 12, 32), "gate_up", "panels"),
        ("model.layers.1.mlp.down_proj.weight", 1, (1, 10, 32), "mlp", "panels"),
    ]
    tied = PanelFormat(replace(make_model(hidden=12, vocab=70), tie_word_embeddings=True), 4)
    assert tied.params[0].shape == (3, 12, 32)


@pytest.mark.parametrize(
    ("sizes", "dtype", "layout", "reason"),
    [
        ({}, "float16", "tp1", "float16 weights"),
        ({"head_dim": 8}, "bfloat16", "tp1", "head_dim 8"),
        ({"head_dim": 272}, "bfloat16", "tp1", "head_dim 272"),
        ({"hidden": 33}, "bfloat16", "tp1", "hidden_size 33 is odd"),
        ({"mlp": 97}, "float32", "tp1", "intermediate_size 97 is odd"),
        ({"mlp": 48}, "bfloat16", "tp4", "intermediate_size 48 cannot be cut into 4"),
        ({"vocab": 96}, "bfloat16", "dp2-tp4", "vocab_size 96 cannot be cut into 4"),
        ({"num_experts": 4, "moe_intermediate_size": 7, "sparse": True}, "float32", "tp1",
         "moe_intermediate_size 7 is odd"),
    ],
)  # fmt: skip
def test_what_panels_do_not_suit_is_plain_and_says_why(
    sizes: dict[str, Any], dtype: str, layout: str, reason: str
) -> None:
    layouts = [ParallelLayout(), ParallelLayout.parse(layout)]
    spec = make_model(**{"head_dim": 16, **sizes})
    found = panels_suit(spec, dtype, layouts)
    assert found is not None
    assert found.startswith(reason)
    assert format_name(spec, dtype, layouts, native=True) == "plain"


def test_what_no_layer_has_keeps_nothing_from_panels() -> None:
    """A plain MLP's width where all layers have experts; experts stay whole, however narrow."""
    spec = make_model(
        head_dim=16, mlp=17, sparse=True, num_experts=4, num_experts_per_tok=1,
        moe_intermediate_size=2,
    )  # fmt: skip
    assert panels_suit(spec, "bfloat16", [ParallelLayout(tp=4)]) is None


def test_panels_only_where_there_are_kernels() -> None:
    spec = make_model(head_dim=16)
    layouts = [ParallelLayout(tp=4)]
    assert format_name(spec, "bfloat16", layouts, native=False) == "plain"
    assert format_name(spec, "bfloat16", layouts, native=True) == "panels"
    assert isinstance(make_format("panels", spec, 2), PanelFormat)
    assert isinstance(make_format("plain", spec, 2), PlainFormat)
