"""Where the rows of a checkpoint's tensor go in a parameter as the decoder stores it.

No torch. What the stored parameters are, and in which order their numbers lie, says `layout`; here
is only the order of rows in the fused ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from seesaw.families.spec import ModelSpec, ParamSpec
from seesaw.layout.format import WeightFormat
from seesaw.layout.stored import EXPERT_DOWNS, EXPERT_UPS, mlp_of


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
    """Rows of one HF tensor in the stored parameter `name`, or in the part of it that is `expert`
    (its index in the first dim)."""

    name: str
    runs: tuple[Run, ...]
    expert: int | None = None


def place(spec: ModelSpec, param: ParamSpec, fmt: WeightFormat) -> Placement:
    """Where `param` of `spec` goes in `fmt`."""
    module, _, part = param.name.rpartition(".")
    prefix, _, projection = module.rpartition(".")
    rows = param.shape[0]
    tile = fmt.gate_tile or rows
    gate_run, up_run = _run(0, 0, rows, tile, 2 * tile), _run(0, tile, rows, tile, 2 * tile)
    if param.expert is not None:
        experts = f"{mlp_of(param)}.experts"
        if projection in EXPERT_DOWNS:
            whole = _run(0, 0, rows, rows, rows)
            return Placement(f"{experts}.down_proj.weight", (whole,), param.expert)
        run = up_run if projection in EXPERT_UPS else gate_run
        return Placement(f"{experts}.gate_up_proj.weight", (run,), param.expert)
    match projection:
        case "q_proj" | "k_proj" | "v_proj":
            return Placement(f"{prefix}.qkv_proj.{part}", _group_runs(spec, projection, fmt))
        case "gate_proj":
            return Placement(f"{prefix}.gate_up_proj.{part}", (gate_run,))
        case "up_proj":
            return Placement(f"{prefix}.gate_up_proj.{part}", (up_run,))
        case "gate":
            return Placement(f"{mlp_of(param)}.gate.weight", (_run(0, 0, rows, rows, rows),))
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
