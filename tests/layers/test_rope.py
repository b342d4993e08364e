"""Inverse frequencies and attention factors against transformers' own, for every kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from seesaw.families.fields import Fields
from seesaw.families.rope import rope_from_hf
from seesaw.families.spec import RopeSpec
from seesaw.layers.rope import Rotary, inverse_frequencies

LLAMA3 = {
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("linear", {"factor": 4.0}),
    ("llama3", LLAMA3),
    ("llama3", {**LLAMA3, "factor": 8.0, "original_max_position_embeddings": 64}),
    ("yarn", YARN),
    ("yarn", {**YARN, "beta_fast": 20.0, "beta_slow": 2.0}),
    ("yarn", {**YARN, "truncate": False}),
    ("yarn", {**YARN, "attention_factor": 1.7}),
    ("yarn", {**YARN, "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 1.0}),
    ("yarn", {**YARN, "factor": 1.0}),
    ("yarn", {**YARN, "original_max_position_embeddings": 16}),
]


@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize(("kind", "params"), KINDS)
@pytest.mark.parametrize("theta", [1e4, 5e5])
def test_frequencies_equal_transformers(
    theta: float, kind: Any, params: dict[str, Any], head_dim: int
) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    values = {"rope_type": kind, "rope_theta": theta, **params}
    config = LlamaConfig(head_dim=head_dim, max_position_embeddings=131072, rope_parameters=values)
    expected, expected_factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    rope = rope_from_hf(Fields({"max_position_embeddings": 131072, "rope_parameters": values}))
    got, factor = inverse_frequencies(rope, head_dim)
    torch.testing.assert_close(got, expected, rtol=2e-6, atol=0)
    assert factor == pytest.approx(expected_factor)


def test_angles_of_far_positions() -> None:
    rotary = Rotary(RopeSpec(1e6), 128, torch.device("cpu"))
    positions = torch.tensor([0, 1, 4095, 131071])
    cos, sin = rotary.cos_sin(positions, torch.float32)
    assert cos.shape == sin.shape == (4, 64)
    frequencies = 1e6 ** (-torch.arange(0, 128, 2, dtype=torch.float64) / 128)
    angles = positions.double()[:, None] * frequencies
    # float32 angles of 1e5 are exact to about 1e-2
    torch.testing.assert_close(cos.double(), angles.cos(), atol=2e-2, rtol=0)
    torch.testing.assert_close(cos[:3].double(), angles[:3].cos(), atol=5e-4, rtol=0)
    torch.testing.assert_close(cos.square() + sin.square(), torch.ones(4, 64))


def test_no_positions() -> None:
    rotary = Rotary(RopeSpec(1e4), 64, torch.device("cpu"))
    cos, _ = rotary.cos_sin(torch.tensor([], dtype=torch.int64), torch.bfloat16)
    assert cos.shape == (0, 32)
    assert cos.dtype == torch.bfloat16
