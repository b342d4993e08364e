"""What stands in the MLP's place in a sparse layer: a router and experts, whole ones of which each
rank holds some.

Every rank routes all tokens by itself, runs its own experts, and the sum over ranks is the layer's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from seesaw.families.spec import ModelSpec
from seesaw.layers.comm import Comm
from seesaw.layout.ranges import RankRanges
from seesaw.ops.moe_mlp import moe_mlp
from seesaw.ops.moe_route import moe_route

# Shape letters: T tokens, H hidden, E experts of this rank.


class MoE:
    """`gate` is the router, a row for each expert of the layer; of the rank's experts
    `experts.gate_up_proj` has the gate rows, then the up rows, and `experts.down_proj` is `[in,
    out]`.

    `loads_E` (int64): how often each expert's weights were read, that is the calls in which some
    token chose it.
    """

    def __init__(
        self,
        spec: ModelSpec,
        params: Mapping[str, torch.Tensor],
        layer: int,
        ranges: RankRanges,
        comm: Comm,
    ) -> None:
        prefix = f"model.layers.{layer}.mlp."
        self._comm = comm
        self._activation = spec.hidden_act
        self._top_k = spec.num_experts_per_tok
        self._renormalize = spec.norm_topk_prob
        self._first_expert = ranges.experts.start
        self._router_weight = params[prefix + "gate.weight"]
        self._gate_up_weight = params[prefix + "experts.gate_up_proj.weight"]
        self._down_weight = params[prefix + "experts.down_proj.weight"]
        self.loads_E = torch.zeros(
            ranges.experts.size, dtype=torch.int64, device=self._router_weight.device
        )

    def __call__(self, x_TH: torch.Tensor) -> torch.Tensor:
        """`[T, H]` -> `[T, H]`, before the residual; the same on all ranks."""
        logits_TE = F.linear(x_TH, self._router_weight)
        weights_TN, experts_TN = moe_route(logits_TE, self._top_k, renormalize=self._renormalize)
        out_TH = moe_mlp(
            x_TH,
            self._gate_up_weight,
            self._down_weight,
            weights_TN,
            experts_TN,
            first_expert=self._first_expert,
            activation=self._activation,
            counts_E=self.loads_E,
        )
        return self._comm.all_reduce(out_TH)
