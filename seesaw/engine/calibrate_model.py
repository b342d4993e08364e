"""Models without meaning that `seesaw calibrate` runs: their parameters are made, not read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from seesaw.config import EngineConfig
from seesaw.families import ModelSpec, spec_from_hf
from seesaw.layout.format import FormatName
from seesaw.layout.formats import make_format
from seesaw.weights.checkpoint import Checkpoint
from seesaw.weights.image import WeightImage

_CONFIG: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 256,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSizes:
    """Of a decoder layer, in elements and heads: those of a small model, whose layers still do not
    stay in a cache. Rates hardly depend on them beyond that."""

    hidden: int = 768
    inner: int = 2048
    kv_heads: int = 4
    group: int = 3
    """Query heads of a KV head."""
    head_dim: int = 64

    @property
    def query_columns(self) -> int:
        return self.kv_heads * self.group * self.head_dim

    @property
    def kv_columns(self) -> int:
        return 2 * self.kv_heads * self.head_dim


def calibration_spec(sizes: LayerSizes, num_layers: int, dtype: str) -> ModelSpec:
    own = {
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.inner,
        "num_attention_heads": sizes.kv_heads * sizes.group,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "num_hidden_layers": num_layers,
        "dtype": dtype,
    }
    return spec_from_hf({**_CONFIG, **own}, "calibration")


def random_params(
    spec: ModelSpec, dtype: torch.dtype, device: torch.device, format_name: FormatName = "plain"
) -> dict[str, torch.Tensor]:
    """All parameters as the decoder takes them."""
    return {
        param.name: torch.empty(param.shape, dtype=dtype, device=device).normal_(std=0.02)
        for param in make_format(format_name, spec, dtype.itemsize).params
    }


@dataclass(frozen=True)
class MadeCheckpoint(Checkpoint):
    """A checkpoint whose weights are drawn when they are asked for."""

    def load_params(
        self,
        dtype: torch.dtype,
        device: torch.device,
        progress: object = None,
        format_name: FormatName = "plain",
    ) -> dict[str, torch.Tensor]:
        return random_params(self.spec, dtype, device, format_name)

    def load_image(self, image: WeightImage, dtype: torch.dtype, progress: object = None) -> None:
        image.tensor.view(dtype).normal_(std=0.02)


def made_checkpoint(spec: ModelSpec) -> MadeCheckpoint:
    return MadeCheckpoint(EngineConfig(model="calibration"), Path("calibration"), spec, {}, {})
