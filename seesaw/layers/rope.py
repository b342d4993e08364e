"""Angles of the rotary position embedding: inverse frequencies of each kind, cosines and sines of a
step.

Nothing is kept per position: a step's angles are computed once and used by all layers.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from seesaw.families.spec import RopeSpec


class Rotary:
    """One RoPE of a model; layers with an equal RopeSpec share it."""

    def __init__(self, rope: RopeSpec, head_dim: int, device: torch.device) -> None:
        frequencies_F, self._attention_factor = inverse_frequencies(rope, head_dim)
        self._frequencies_F = frequencies_F.to(device)

    def cos_sin(
        self, positions_T: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines `[T, head_dim / 2]`, computed in float32, times the attention
        factor.
        """
        angles_TF = positions_T.float()[:, None] * self._frequencies_F
        factor = self._attention_factor
        return (angles_TF.cos() * factor).to(dtype), (angles_TF.sin() * factor).to(dtype)


def inverse_frequencies(rope: RopeSpec, head_dim: int) -> tuple[torch.Tensor, float]:
    """Inverse frequencies `[head_dim / 2]` (float32, on the CPU) and the factor on cosines and
    sines.
    """
    exponents_F = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    base_F: torch.Tensor = 1.0 / rope.theta**exponents_F
    params = dict(rope.params)
    if rope.kind == "default":
        return base_F, 1.0
    if rope.kind == "linear":
        return base_F / params["factor"], 1.0
    if rope.kind == "llama3":
        return _llama3(base_F, params), 1.0
    return _yarn(base_F, rope.theta, params), params["attention_factor"]


def _llama3(base_F: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
    """Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, between them a
    blend.
    """
    low, high = float(params["low_freq_factor"]), float(params["high_freq_factor"])
    turns_F = base_F * (float(params["original_max_position_embeddings"]) / (2 * math.pi))
    keep_F = ((turns_F - low) / (high - low)).clamp(0.0, 1.0)
    stretched_F = base_F / float(params["factor"])
    return stretched_F + keep_F * (base_F - stretched_F)


def _yarn(base_F: torch.Tensor, theta: float, params: dict[str, Any]) -> torch.Tensor:
    """YaRN (Peng et al. 2023, section 3.2): dims that turn often in the original context are kept,
    those that turn seldom interpolated, with a linear ramp between `beta_fast` and `beta_slow`
    turns.
    """
    head_dim = 2 * len(base_F)
    original = params["original_max_position_embeddings"]

    def dim_of(turns: float) -> float:
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dim_of(params["beta_fast"]), dim_of(params["beta_slow"])
    if params["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # a step instead of a ramp
    ramp_F = ((torch.arange(len(base_F), dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    stretched_F = base_F / float(params["factor"])
    return base_F + ramp_F * (stretched_F - base_F)
