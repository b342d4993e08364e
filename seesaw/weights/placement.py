"""Where the rows of a checkpoint's tensor go in a parameter as the decoder stores it.

No torch. What the stored parameters are, and in which order their numbers lie, says `layout`; here
is only the order of rows in the fused ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from seesaw.families.spec import ModelSpec, ParamSpec
from seesaw.layout.format import WeightFormat


@dataclass(frozen=True, slots=True)
class Run:
    """`num_rows` rows from `source` on go to rows from `target` on (columns, where the parameter is
    stored by column or in panels): `group` of them one after another, the next group `step` rows
    after the one before it."""

    source: int
    target: int
    num_rows: int
    group: int
    step: int

    def part(self, start: int, count: int) -> Run:
        """The run of `count` rows from its row `start`, which begins a group or is in the only
        one, on."""
        number, within = divmod(start, self.group)
        assert within == 0 or self.group == self.num_rows, f"{start} is within a group of {self}"
        target = self.target + number * self.step + within
        return Run(self.source + start, target, count, min(self.group, count), self.step)


@dataclass(frozen=True, slots=True)
class Placement:
    """Rows of one HF tensor in the stored parameter `name`."""

    name: str
    runs: tuple[Run, ...]


def place(spec: ModelSpec, param: ParamSpec, fmt: WeightFormat) -> Placement:
    """Where `param` of `spec` goes in `fmt`."""
    module, _, part = param.name.rpartition(".")
    prefix, _, projection = module.rpartition(".")
    rows, tile = param.shape[0], fmt.gate_tile
    match projection:
        case "q_proj" | "k_proj" | "v_proj":
            return Placement(f"{prefix}.qkv_proj.{part}", _group_runs(spec, projection, fmt))
        case "gate_proj":
            return Placement(f"{prefix}.gate_up_proj.{part}", (_run(0, 0, rows, tile, 2 * tile),))
        case "up_proj":
            return Placement(
                f"{prefix}.gate_up_proj.{part}", (_run(0, tile, rows, tile, 2 * tile),)
            )
    return Placement(param.name, (_run(0, 0, rows, rows, rows),))


def _group_runs(spec: ModelSpec, projection: str, fmt: WeightFormat) -> tuple[Run, ...]:
    """For each KV head its query heads, then its K head, then its V head."""
    group = spec.num_attention_heads // spec.num_key_value_heads
    heads, first = {"q_proj": (group, 0), "k_proj": (1, group), "v_proj": (1, group + 1)}[
        projection
    ]
    dim, step = spec.head_dim, fmt.head_step
    return tuple(
        _run(kv_head * heads * dim, (kv_head * (group + 2) + first) * step, heads * dim, dim, step)
        for kv_head in range(spec.num_key_value_heads)
    )


def _run(source: int, target: int, num_rows: int, group: int, step: int) -> Run:
    """Groups without gaps between them are one."""
    if group == step or group > num_rows:
        group = step = num_rows
    return Run(source, target, num_rows, group, step)
