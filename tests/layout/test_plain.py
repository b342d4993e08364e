"""Slices of the plain format against rows counted one by one."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seesaw.families import spec_from_hf
from seesaw.families.spec import ModelSpec
from seesaw.layout import ParallelLayout, PlainFormat, RankRanges, layouts_for, stored_params
from seesaw.layout.format import StoredParam
from tests.layout.models import all_ranges, make_model, models

element_sizes = st.sampled_from([2, 4])


def rows_of(spec: ModelSpec, param: StoredParam, ranges: RankRanges) -> list[int]:
    """Rows that a rank needs of a parameter of its stage, by what each row is."""
    group = spec.num_attention_heads // spec.num_key_value_heads
    dim, mlp = spec.head_dim, spec.intermediate_size
    if "qkv_proj" in param.name:
        labels = [
            (name, head)
            for kv_head in range(spec.num_key_value_heads)
            for name, head in (
                *(("q", kv_head * group + i) for i in range(group)),
                ("kv", kv_head),
                ("kv", kv_head),
            )
            for _ in range(dim)
        ]
        held = {"q": range(*ranges.query_heads), "kv": range(*ranges.kv_heads)}
        return [row for row, (name, head) in enumerate(labels) if head in held[name]]
    if ".experts." in param.name:
        return list(range(*ranges.experts))
    if "gate_up_proj" in param.name:
        return [row for row in range(2 * mlp) if row % mlp in range(*ranges.mlp)]
    if param.name.endswith("o_proj.weight"):
        return [row for row in range(param.shape[0]) if row // dim in range(*ranges.query_heads)]
    if param.name.endswith("down_proj.weight"):
        return list(range(*ranges.mlp))
    if param.name in ("model.embed_tokens.weight", "lm_head.weight"):
        return list(range(*ranges.vocab))
    return list(range(param.shape[0]))


def is_held(spec: ModelSpec, param: StoredParam, layout: ParallelLayout, stage: int) -> bool:
    """Whether `stage` needs a parameter at all."""
    last = stage == layout.pp - 1
    if param.layer is not None:
        return param.layer in range(*all_ranges(layout, spec)[stage * layout.tp].layers)
    if param.name == "model.embed_tokens.weight":
        return stage == 0 or (last and spec.tie_word_embeddings)
    return last


@given(models(), element_sizes, st.data())
def test_a_slice_is_the_rows_that_its_rank_needs(
    spec: ModelSpec, element_bytes: int, data: st.DataObject
) -> None:
    devices = data.draw(st.sampled_from([n for n in range(1, 9) if layouts_for(n, spec, dp=1)]))
    layout = data.draw(st.sampled_from(layouts_for(devices, spec, dp=1)))
    fmt = PlainFormat(spec, element_bytes)
    for rank, ranges in enumerate(all_ranges(layout, spec)):
        for param in fmt.params:
            held = is_held(spec, param, layout, layout.coordinates(rank).pp)
            assert fmt.holds(param, ranges) == held
            runs = fmt.runs(param, ranges)
            rows = rows_of(spec, param, ranges) if held else []
            row_bytes = fmt.nbytes(param) // param.shape[0]
            taken = [byte for run in runs for byte in range(run.start, run.start + run.size)]
            assert taken == [row * row_bytes + i for row in rows for i in range(row_bytes)]
            assert fmt.local_shape(param, ranges) == (len(rows), *param.shape[1:])
            assert all(a.start + a.size != b.start for a, b in itertools.pairwise(runs))
            assert len(runs) <= 2


@given(models(), element_sizes)
def test_the_image_holds_every_element_once_on_aligned_offsets(
    spec: ModelSpec, element_bytes: int
) -> None:
    fmt = PlainFormat(spec, element_bytes)
    assert sum(fmt.nbytes(param) for param in fmt.params) == spec.num_parameters * element_bytes
    assert list(fmt.image_offsets) == [param.name for param in fmt.params]
    end = 0
    for param in fmt.params:
        offset = fmt.image_offsets[param.name]
        assert offset % 64 == 0
        assert end <= offset < end + 64
        end = offset + fmt.nbytes(param)
    assert end <= fmt.image_bytes < end + 64


def test_stored_names_shapes_and_cuts() -> None:
    spec = make_model(
        layers=1, query_heads=6, kv_heads=2, mlp=10, vocab=30, hidden=12, head_dim=4,
        attention_bias=True, attention_out_bias=True, mlp_bias=True, tie_word_embeddings=False,
    )  # fmt: skip
    layer = "model.layers.0."
    assert [tuple(param) for param in stored_params(spec)] == [
        ("model.embed_tokens.weight", None, (30, 12), "vocab", "rows"),
        (f"{layer}input_layernorm.weight", 0, (12,), "none", "rows"),
        (f"{layer}self_attn.qkv_proj.weight", 0, (40, 12), "heads", "rows"),
        (f"{layer}self_attn.qkv_proj.bias", 0, (40,), "heads", "rows"),
        (f"{layer}self_attn.o_proj.weight", 0, (24, 12), "query", "columns"),
        (f"{layer}self_attn.o_proj.bias", 0, (12,), "none", "rows"),
        (f"{layer}post_attention_layernorm.weight", 0, (12,), "none", "rows"),
        (f"{layer}mlp.gate_up_proj.weight", 0, (20, 12), "gate_up", "rows"),
        (f"{layer}mlp.gate_up_proj.bias", 0, (20,), "gate_up", "rows"),
        (f"{layer}mlp.down_proj.weight", 0, (10, 12), "mlp", "columns"),
        (f"{layer}mlp.down_proj.bias", 0, (12,), "none", "rows"),
        ("model.norm.weight", None, (12,), "none", "rows"),
        ("lm_head.weight", None, (30, 12), "vocab", "rows"),
    ]


def test_experts_are_two_parameters_and_the_router_is_whole() -> None:
    spec = make_model(
        layers=2, query_heads=2, kv_heads=2, mlp=10, vocab=30, hidden=12, head_dim=4,
        sparse=[True, False], num_experts=5, num_experts_per_tok=2, moe_intermediate_size=7,
    )  # fmt: skip
    found = [tuple(param) for param in stored_params(spec) if ".mlp." in param.name]
    assert found == [
        ("model.layers.0.mlp.gate.weight", 0, (5, 12), "none", "rows"),
        ("model.layers.0.mlp.experts.gate_up_proj.weight", 0, (5, 14, 12), "experts", "rows"),
        ("model.layers.0.mlp.experts.down_proj.weight", 0, (5, 7, 12), "experts", "columns"),
        ("model.layers.1.mlp.gate_up_proj.weight", 1, (20, 12), "gate_up", "rows"),
        ("model.layers.1.mlp.down_proj.weight", 1, (10, 12), "mlp", "columns"),
    ]


@pytest.mark.parametrize("architecture", ["MixtralForCausalLM", "Qwen3MoeForCausalLM"])
def test_families_with_experts_are_stored_under_the_same_names(architecture: str) -> None:
    spec = spec_from_hf(
        {
            "architectures": [architecture], "hidden_size": 12, "intermediate_size": 6,
            "moe_intermediate_size": 6, "num_hidden_layers": 3, "num_attention_heads": 2,
            "num_key_value_heads": 1, "vocab_size": 30, "max_position_embeddings": 64,
            "num_experts": 3, "num_local_experts": 3, "num_experts_per_tok": 2,
        }
    )  # fmt: skip
    fmt = PlainFormat(spec, 2)
    assert sum(fmt.nbytes(param) for param in fmt.params) == 2 * spec.num_parameters
    assert {param.name for param in fmt.params if ".mlp." in param.name} == {
        f"model.layers.{layer}.mlp.{name}.weight"
        for layer in range(3)
        for name in ("gate", "experts.gate_up_proj", "experts.down_proj")
    }
    ranges = all_ranges(ParallelLayout(tp=2), spec)
    experts = next(param for param in fmt.params if param.cut == "experts")
    assert [fmt.local_shape(experts, held) for held in ranges] == [(2, 12, 12), (1, 12, 12)]


@pytest.mark.parametrize(
    ("layout", "query_heads", "kv_heads", "rows"),
    [("tp8", 28, 4, [6, 5] * 4), ("tp2", 9, 3, [10, 5]), ("tp4", 9, 3, [4, 3, 5, 5])],
)
def test_heads_of_fused_qkv(layout: str, query_heads: int, kv_heads: int, rows: list[int]) -> None:
    """Heads on each rank: its query heads, and K and V of each KV head they read."""
    spec = make_model(query_heads=query_heads, kv_heads=kv_heads, head_dim=1)
    fmt = PlainFormat(spec, 4)
    qkv = next(param for param in fmt.params if param.cut == "heads")
    ranges = all_ranges(ParallelLayout.parse(layout), spec)
    assert [fmt.local_shape(qkv, held)[0] for held in ranges] == rows
