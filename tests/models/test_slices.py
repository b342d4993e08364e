"""A decoder cut over ranks against the whole one: every family, odd sizes, any layout."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from seesaw.families.registry import spec_from_hf
from seesaw.families.spec import ModelSpec
from seesaw.layout import ParallelLayout, rank_ranges
from seesaw.models.decoder import Decoder
from tests.checkpoints import FAMILIES, tiny_config, tiny_model
from tests.models.fuse import fused_params
from tests.models.harness import Rows
from tests.models.ranks import CutModel, slice_params

ODD = {"intermediate_size": 97, "vocab_size": 321}  # cut unevenly by 2, by 3 (97) and by 4
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((family, ODD) for family in FAMILIES),
    ("llama", {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 72, **ODD}),
    ("llama", {"num_attention_heads": 5, "num_key_value_heads": 1, "hidden_size": 40, **ODD}),
    ("llama", {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, **ODD}),
    ("gemma3", {"final_logit_softcapping": 5.0, "num_key_value_heads": 1}),
]
LAYOUTS = ["tp2", "tp3", "tp4", "pp2", "pp3", "tp2-pp2", "tp3-pp3", "tp4-pp2"]
LENGTHS = (40, 1, 23)


@pytest.fixture(autouse=True)
def seed() -> int:
    """Of the tokens; shown by pytest where a test fails."""
    seed = random.randrange(2**31)
    print(f"seed={seed}")
    torch.manual_seed(seed)
    return seed


def make(
    family: str, overrides: dict[str, Any], dtype: str = "float32"
) -> tuple[ModelSpec, dict[str, torch.Tensor]]:
    model = tiny_model(tiny_config(family, **overrides), dtype=dtype)
    config = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    return spec_from_hf(config), fused_params(model)


def run_both(
    spec: ModelSpec, params: dict[str, torch.Tensor], layout: str
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(cut, whole) logits of the same tokens: prompts in chunks, then some decode steps."""
    tokens = [torch.randint(spec.vocab_size, (length + 8,)) for length in LENGTHS]
    whole = Rows(Decoder(spec, params), tokens, block_size=16)
    steps = [[30, 0, 20], [10, 1, 3], [1, 1, 1], [0, 1, 1], [1, 0, 0], [4, 3, 2]]
    expected = [torch.cat(whole.step(counts)) for counts in steps]
    whole.done = [0] * len(tokens)
    whole.kv.pool.fill_(float("nan"))
    cut = CutModel(spec, params, ParallelLayout.parse(layout), whole)
    return [
        (torch.cat(cut.step(counts)), logits)
        for counts, logits in zip(steps, expected, strict=True)
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("family", "overrides"), VARIANTS, ids=[f"{f}-{'-'.join(o)}" for f, o in VARIANTS]
)
def test_slices_give_the_whole_models_logits(
    family: str, overrides: dict[str, Any], layout: str
) -> None:
    spec, params = make(family, overrides)
    exactly = ParallelLayout.parse(layout).tp == 1
    for got, expected in run_both(spec, params, layout):
        assert got.shape == expected.shape
        atol = 0.0 if exactly else 1e-4
        torch.testing.assert_close(got, expected, atol=atol, rtol=atol)


def test_stages_change_no_bit_of_a_tensor_parallel_model() -> None:
    spec, params = make("qwen3", ODD)
    tokens = [torch.randint(spec.vocab_size, (30,))]
    whole = Rows(Decoder(spec, params), tokens, 16)
    results = []
    for layout in ("tp2", "tp2-pp3"):
        whole.done = [0]
        results.append(CutModel(spec, params, ParallelLayout.parse(layout), whole).step([30])[0])
    assert torch.equal(*results)


@pytest.mark.parametrize("layout", ["tp2", "tp3-pp2"])
def test_bfloat16_slices_err_as_much_as_the_whole(layout: str, seed: int) -> None:
    """Root mean square error of bf16 logits against float32 ones of the same weights."""
    spec, params = make("llama", ODD, dtype="bfloat16")
    torch.manual_seed(seed)
    both = run_both(spec, params, layout)
    torch.manual_seed(seed)
    wide = {name: param.float() for name, param in params.items()}
    exact = torch.cat([whole for _, whole in run_both(spec, wide, "pp2")])
    errors = [
        (torch.cat(logits) - exact).square().mean().sqrt() for logits in zip(*both, strict=True)
    ]
    assert 0 < errors[0] < 1.5 * errors[1]


def test_a_rank_needs_no_more_than_its_slice() -> None:
    """Only end stages have embedding or head, and only those may be asked for them."""
    spec, params = make("llama", {})
    layout = ParallelLayout(pp=3)
    decoders = [
        Decoder(spec, slice_params(spec, params, ranges), ranges)
        for ranges in (rank_ranges(layout, spec, rank) for rank in range(3))
    ]
    tokens = torch.tensor([1, 2])
    hidden = decoders[0].embed(tokens)
    assert decoders[2].logits(hidden, tokens[:1]).shape == (1, spec.vocab_size)
    for decoder in decoders[1:]:
        with pytest.raises(AssertionError, match="first stage"):
            decoder.embed(tokens)
    for decoder in decoders[:2]:
        with pytest.raises(AssertionError, match="last stage"):
            decoder.logits(hidden, tokens[:1])
