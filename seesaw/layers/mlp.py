"""The gated MLP of one layer: down(act(gate x) * up x), its inner columns cut over the ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from seesaw.families.spec import ModelSpec
from seesaw.layers.comm import Comm
from seesaw.layers.row_parallel import row_parallel
from seesaw.ops.gated_activation import gated_activation

# Shape letters: T tokens, H hidden.


class MLP:
    """`gate_up_proj` has the rank's gate rows, then its up rows; `down_proj` is `[in, out]`."""

    def __init__(
        self, spec: ModelSpec, params: Mapping[str, torch.Tensor], layer: int, comm: Comm
    ) -> None:
        prefix = f"model.layers.{layer}.mlp."
        self._comm = comm
        self._activation = spec.hidden_act
        self._gate_up_weight = params[prefix + "gate_up_proj.weight"]
        self._gate_up_bias = params[prefix + "gate_up_proj.bias"] if spec.mlp_bias else None
        self._down_weight = params[prefix + "down_proj.weight"]
        self._down_bias = params[prefix + "down_proj.bias"] if spec.mlp_bias else None

    def __call__(self, x_TH: torch.Tensor) -> torch.Tensor:
        """`[T, H]` -> `[T, H]`, before the residual; the same on all ranks."""
        gate_up = F.linear(x_TH, self._gate_up_weight, self._gate_up_bias)
        inner = gated_activation(gate_up, self._activation)
        return row_parallel(inner, self._down_weight, self._down_bias, self._comm)
