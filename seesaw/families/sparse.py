"""What the mixture-of-experts families share: fields of the router, and the experts' tensors.

Standard library only. A layer whose `LayerSpec.sparse` is set has a router and experts in place of
one MLP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from seesaw.families.fields import Fields
from seesaw.families.spec import ModelSpec, ParamSpec


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """How a checkpoint calls the router and the three matrices of an expert."""

    module: str
    gate: str
    up: str
    down: str


PLAIN_NAMES = ExpertNames("mlp", gate="gate_proj", up="up_proj", down="down_proj")
"""Those of a plain MLP, behind the expert's number."""


def expert_features(
    fields: Fields, *, count: str, default_count: int, default_per_token: int
) -> dict[str, Any]:
    """`num_experts` and `num_experts_per_tok` of ModelSpec; `count` is the field of the former."""
    num_experts = fields.integer(count, default_count)
    per_token = fields.integer("num_experts_per_tok", default_per_token)
    if per_token > num_experts:
        raise fields.error("num_experts_per_tok", f"an integer from 1 to {count}={num_experts}")
    return {"num_experts": num_experts, "num_experts_per_tok": per_token}


def expert_params(spec: ModelSpec, layer: int, names: ExpertNames) -> list[ParamSpec]:
    """Router and experts of one layer."""
    hidden, inner = spec.hidden_size, spec.moe_intermediate_size
    prefix = f"model.layers.{layer}.{names.module}."
    found = [ParamSpec(f"{prefix}gate.weight", (spec.num_experts, hidden), layer)]
    shapes = {
        names.gate: (inner, hidden),
        names.up: (inner, hidden),
        names.down: (hidden, inner),
    }
    for expert in range(spec.num_experts):
        for matrix, shape in shapes.items():
            name = f"{prefix}experts.{expert}.{matrix}.weight"
            found.append(ParamSpec(name, shape, layer, "expert", expert=expert))
    return found
