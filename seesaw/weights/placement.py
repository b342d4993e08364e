"""Where the rows of a checkpoint's tensor go in a parameter as the decoder stores it.

No torch. What the stored parameters are, and which of them are transposed, says `layout`
(`stored_params`); here is only the order of rows in the fused ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from seesaw.families.spec import ModelSpec, ParamSpec
from seesaw.layout.format import StoredParam


@dataclass(frozen=True, slots=True)
class Run:
    """`num_rows` rows from `source` on go to rows from `target` on."""

    source: int
    target: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Rows of one HF tensor in the stored parameter `name`; its columns where `transposed`."""

    name: str
    runs: tuple[Run, ...]
    transposed: bool = False


def place(spec: ModelSpec, param: ParamSpec, stored: Mapping[str, StoredParam]) -> Placement:
    """Where `param` of `spec` goes; `stored` are the stored parameters by name."""
    module, _, part = param.name.rpartition(".")
    prefix, _, projection = module.rpartition(".")
    rows = param.shape[0]
    match projection:
        case "q_proj" | "k_proj" | "v_proj":
            return Placement(f"{prefix}.qkv_proj.{part}", _group_runs(spec, projection))
        case "gate_proj":
            return Placement(f"{prefix}.gate_up_proj.{part}", (Run(0, 0, rows),))
        case "up_proj":
            return Placement(f"{prefix}.gate_up_proj.{part}", (Run(0, rows, rows),))
    # The cut tells, not the shape, which may be square.
    transposed = stored[param.name].cut in ("query", "mlp")
    return Placement(param.name, (Run(0, 0, rows),), transposed)


def _group_runs(spec: ModelSpec, projection: str) -> tuple[Run, ...]:
    """For each KV head its query heads, then its K head, then its V head."""
    group = spec.num_attention_heads // spec.num_key_value_heads
    heads, first = {"q_proj": (group, 0), "k_proj": (1, group), "v_proj": (1, group + 1)}[
        projection
    ]
    dim = spec.head_dim
    return tuple(
        Run(kv_head * heads * dim, (kv_head * (group + 2) + first) * dim, heads * dim)
        for kv_head in range(spec.num_key_value_heads)
    )
