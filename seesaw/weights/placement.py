"""Where the rows of a checkpoint's tensor go in the decoder's fused parameters.

No torch. q, k and v become `qkv_proj`, interleaved by KV-head group: for each KV head its query
heads, then its K head, then its V head, so that a tensor-parallel slice by KV head is one run.
Gate and up become `gate_up_proj`, gate rows first. Everything else keeps name and shape.
"""

from __future__ import annotations

from dataclasses import dataclass

from seesaw.families.spec import ModelSpec, ParamSpec


@dataclass(frozen=True, slots=True)
class Run:
    """`num_rows` rows from `source` on go to rows from `target` on."""

    source: int
    target: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Rows of one HF tensor in the decoder's parameter `name` of `shape`."""

    name: str
    shape: tuple[int, ...]
    runs: tuple[Run, ...]


def place(spec: ModelSpec, param: ParamSpec) -> Placement:
    """Where `param` of `spec` goes."""
    rows = param.shape[0]
    module, _, part = param.name.rpartition(".")
    prefix, _, projection = module.rpartition(".")
    if projection in ("q_proj", "k_proj", "v_proj"):
        total = (spec.num_attention_heads + 2 * spec.num_key_value_heads) * spec.head_dim
        runs = _group_runs(spec, projection)
        return Placement(f"{prefix}.qkv_proj.{part}", (total, *param.shape[1:]), runs)
    if projection in ("gate_proj", "up_proj"):
        start = 0 if projection == "gate_proj" else rows
        run = Run(0, start, rows)
        return Placement(f"{prefix}.gate_up_proj.{part}", (2 * rows, *param.shape[1:]), (run,))
    return Placement(param.name, param.shape, (Run(0, 0, rows),))


def _group_runs(spec: ModelSpec, projection: str) -> tuple[Run, ...]:
    group = spec.num_attention_heads // spec.num_key_value_heads
    heads, first = {"q_proj": (group, 0), "k_proj": (1, group), "v_proj": (1, group + 1)}[
        projection
    ]
    dim = spec.head_dim
    return tuple(
        Run(kv_head * heads * dim, (kv_head * (group + 2) + first) * dim, heads * dim)
        for kv_head in range(spec.num_key_value_heads)
    )
