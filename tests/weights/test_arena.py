"""The arena: tensors at the addresses of the plan, in the shapes of the format."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seesaw.families.spec import ModelSpec
from seesaw.layout import ParallelLayout, PlainFormat, plan_arena
from seesaw.weights.arena import Arena
from seesaw.weights.hashes import param_hashes
from tests.layout.models import all_ranges, make_model, models_and_pairs

CPU = torch.device("cpu")
Case = tuple[ModelSpec, ParallelLayout, ParallelLayout]


@settings(max_examples=60)
@given(models_and_pairs(), st.sampled_from([torch.bfloat16, torch.float32]))
def test_tensors_lie_where_the_plan_says_and_share_no_byte(case: Case, dtype: torch.dtype) -> None:
    spec, *pair = case
    fmt = PlainFormat(spec, dtype.itemsize)
    layouts = [all_ranges(layout, spec) for layout in pair]
    for rank in range(pair[0].num_ranks):
        plan = plan_arena(fmt, layouts, rank)
        arena = Arena(plan, CPU)
        assert arena.bytes.shape == (plan.nbytes,)
        for index, ranges in enumerate(layouts):
            params = arena.params(fmt, index, ranges[rank], dtype)
            tied = params.get("lm_head.weight")
            if spec.tie_word_embeddings and tied is not None:
                assert params.pop("lm_head.weight") is params["model.embed_tokens.weight"]
            assert params.keys() == plan.offsets[index].keys()
            arena.bytes.zero_()
            for param in fmt.params:
                if param.name in params:
                    tensor = params[param.name]
                    assert tensor.dtype == dtype
                    assert tensor.shape == fmt.local_shape(param, ranges[rank])
                    assert tensor.is_contiguous()
                    start = arena.bytes.data_ptr() + plan.offsets[index][param.name]
                    assert tensor.data_ptr() == start
                    tensor.view(torch.uint8).add_(1)
            held = sum(tensor.nbytes for tensor in params.values())
            assert arena.bytes.max() == 1
            assert arena.bytes.sum() == held


def test_a_tied_head_is_where_the_embedding_is() -> None:
    spec = make_model(layers=3)
    fmt = PlainFormat(spec, 4)
    ranges = all_ranges(ParallelLayout(pp=3), spec)
    held = []
    for rank in range(3):
        arena = Arena(plan_arena(fmt, [ranges], rank), CPU)
        params = arena.params(fmt, 0, ranges[rank], torch.float32)
        held.append("model.embed_tokens.weight" in params)
        assert ("lm_head.weight" in params) == held[-1]
    assert held == [True, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_hashes_tell_bytes_apart(dtype: torch.dtype) -> None:
    tensor = torch.zeros(3, 5, dtype=dtype)
    hashes = param_hashes({"a": tensor, "b": tensor.clone(), "empty": tensor[:0]})
    assert hashes["a"] == hashes["b"] != hashes["empty"]
    assert all(len(found) == 32 for found in hashes.values())
    raw = tensor.view(-1).view(torch.uint8)
    for at in (0, len(raw) // 2, len(raw) - 1):
        raw[at] ^= 1
        assert param_hashes({"a": tensor})["a"] != hashes["a"]
        raw[at] ^= 1
    assert param_hashes({"a": tensor})["a"] == hashes["a"]
    if dtype.is_floating_point:
        assert param_hashes({"a": -tensor})["a"] != hashes["a"], "-0.0 has other bytes than 0.0"
