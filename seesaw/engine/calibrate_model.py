"""Models without meaning that `seesaw calibrate` runs: their parameters are made, not read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from seesaw.config import EngineConfig
from seesaw.families import ModelSpec, spec_from_hf
from seesaw.layout.plain import stored_params
from seesaw.weights.checkpoint import Checkpoint
from seesaw.weights.image import WeightImage

_TINY: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


def calibration_spec(num_layers: int, dtype: torch.dtype) -> ModelSpec:
    """So small that only its calls take time."""
    name = str(dtype).removeprefix("torch.")
    return spec_from_hf({**_TINY, "num_hidden_layers": num_layers, "dtype": name}, "calibration")


def random_params(
    spec: ModelSpec, dtype: torch.dtype, device: torch.device
) -> dict[str, torch.Tensor]:
    """All parameters as the decoder takes them."""
    return {
        param.name: (0.1 * torch.randn(param.shape, device=device)).to(dtype)
        for param in stored_params(spec)
    }


@dataclass(frozen=True)
class MadeCheckpoint(Checkpoint):
    """A checkpoint whose weights are drawn when they are asked for."""

    def load_params(
        self, dtype: torch.dtype, device: torch.device, progress: object = None
    ) -> dict[str, torch.Tensor]:
        return random_params(self.spec, dtype, device)

    def load_image(self, image: WeightImage, dtype: torch.dtype, progress: object = None) -> None:
        image.tensor.view(dtype).normal_(std=0.1)


def made_checkpoint(num_layers: int, dtype: torch.dtype) -> MadeCheckpoint:
    spec = calibration_spec(num_layers, dtype)
    config = EngineConfig(model="calibration")
    return MadeCheckpoint(config, Path("calibration"), replace(spec), {}, {})
