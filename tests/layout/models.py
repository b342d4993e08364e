"""Models of odd sizes and pairs of layouts over the same ranks, for tests of weights' layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

from seesaw.families.common import with_params
from seesaw.families.spec import LayerSpec, ModelSpec, RopeSpec
from seesaw.layout import (
    PanelFormat,
    ParallelLayout,
    PlainFormat,
    RankRanges,
    layouts_for,
    panels_suit,
    rank_ranges,
)


def make_model(
    *,
    layers: int = 4,
    query_heads: int = 8,
    kv_heads: int = 4,
    mlp: int = 96,
    vocab: int = 320,
    head_dim: int = 8,
    hidden: int = 64,
    sparse: Sequence[bool] | bool = False,
    **features: Any,
) -> ModelSpec:
    """`sparse`: of each layer, or of all; such a model needs `num_experts`, .. in `features`."""
    rope = RopeSpec(theta=10000.0)
    flags = [sparse] * layers if isinstance(sparse, bool) else sparse
    spec = ModelSpec(
        family="llama",
        architecture="LlamaForCausalLM",
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=query_heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        tie_word_embeddings=features.pop("tie_word_embeddings", True),
        torch_dtype="float32",
        layers=tuple(LayerSpec(None, rope, sparse=flag) for flag in flags),
    )
    return with_params(replace(spec, **features))


def all_ranges(layout: ParallelLayout, spec: ModelSpec) -> list[RankRanges]:
    return [rank_ranges(layout, spec, rank) for rank in range(layout.num_ranks)]


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    """Uneven in every way; rows of any size, so that starts are aligned or not; every third with
    experts, and some of these with plain layers among sparse ones."""
    kv_heads = draw(st.integers(1, 5))
    query_heads = kv_heads * draw(st.integers(1, 5))
    layers = draw(st.integers(1, 9))
    sparse: list[bool] = [False] * layers
    features: dict[str, int] = {}
    if draw(st.sampled_from([True, False, False])):
        sparse = draw(st.lists(st.booleans(), min_size=layers, max_size=layers).filter(any))
        features = {
            "num_experts": draw(st.integers(1, 9)),
            "moe_intermediate_size": draw(st.integers(1, 7)),
        }
        features["num_experts_per_tok"] = draw(st.integers(1, features["num_experts"]))
    return make_model(
        layers=layers,
        sparse=sparse,
        query_heads=query_heads,
        kv_heads=kv_heads,
        mlp=draw(st.integers(query_heads, 50)),
        vocab=draw(st.integers(query_heads, 50)),
        head_dim=draw(st.sampled_from([2, 4, 8])),
        hidden=draw(st.sampled_from([3, 8, 16, 20])),
        tie_word_embeddings=draw(st.booleans()),
        attention_bias=draw(st.booleans()),
        attention_out_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        **features,
    )


@st.composite
def with_any_stages(
    draw: st.DrawFn, layouts: st.SearchStrategy[ParallelLayout], num_layers: int
) -> ParallelLayout:
    """Of `layouts`, half of those with several stages with a number of layers for each."""
    layout = draw(layouts)
    if layout.pp == 1 or draw(st.booleans()):
        return layout
    inner = st.lists(
        st.integers(1, num_layers - 1), min_size=layout.pp - 1, max_size=layout.pp - 1, unique=True
    )
    bounds = [0, *sorted(draw(inner)), num_layers]
    return replace(layout, stages=tuple(stop - start for start, stop in pairwise(bounds)))


@st.composite
def models_and_pairs(draw: st.DrawFn) -> tuple[ModelSpec, ParallelLayout, ParallelLayout]:
    """A model and two layouts of one replica over 1 to 8 ranks."""
    spec = draw(models())
    counts = [count for count in range(1, 9) if layouts_for(count, spec, dp=1)]
    layouts = st.sampled_from(layouts_for(draw(st.sampled_from(counts)), spec, dp=1))
    cut = with_any_stages(layouts, spec.num_hidden_layers)
    return spec, draw(cut), draw(cut)


@st.composite
def panel_models(draw: st.DrawFn) -> ModelSpec:
    """Models that panels suit, uneven in every other way: heads with and without pads, last tiles
    and panels that are not full; every third with experts."""
    kv_heads = draw(st.integers(1, 3))
    layers = draw(st.integers(1, 5))
    sparse: list[bool] = [False] * layers
    features: dict[str, int] = {}
    if draw(st.sampled_from([True, False, False])):
        sparse = draw(st.lists(st.booleans(), min_size=layers, max_size=layers).filter(any))
        features = {
            "num_experts": draw(st.integers(1, 40)),
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 2 * draw(st.integers(1, 20)),
        }
    return make_model(
        layers=layers,
        sparse=sparse,
        query_heads=kv_heads * draw(st.integers(1, 4)),
        kv_heads=kv_heads,
        mlp=2 * draw(st.integers(1, 60)),
        vocab=draw(st.integers(1, 200)),
        head_dim=draw(st.sampled_from([16, 32, 48])),
        hidden=draw(st.sampled_from([2, 4, 6, 34])),
        tie_word_embeddings=draw(st.booleans()),
        attention_bias=draw(st.booleans()),
        attention_out_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        **features,
    )


def panel_layouts(num_ranks: int, spec: ModelSpec) -> list[ParallelLayout]:
    """Of one replica."""
    found = layouts_for(num_ranks, spec, dp=1)
    return [one for one in found if panels_suit(spec, "bfloat16", [one]) is None]


@st.composite
def panel_models_and_pairs(draw: st.DrawFn) -> tuple[ModelSpec, ParallelLayout, ParallelLayout]:
    """As `models_and_pairs`, for panels."""
    spec = draw(panel_models())
    counts = [count for count in range(1, 9) if panel_layouts(count, spec)]
    layouts = st.sampled_from(panel_layouts(draw(st.sampled_from(counts)), spec))
    cut = with_any_stages(layouts, spec.num_hidden_layers)
    return spec, draw(cut), draw(cut)


FormatCase = tuple[type[PlainFormat | PanelFormat], ModelSpec, ParallelLayout, ParallelLayout]


def formats_and_pairs() -> st.SearchStrategy[FormatCase]:
    """A format, a model that it suits, and two layouts."""
    return st.one_of(
        models_and_pairs().map(lambda case: (PlainFormat, *case)),
        panel_models_and_pairs().map(lambda case: (PanelFormat, *case)),
    )
