"""`PlainFormat`: rows one after another, `[out, in]` for what tensor parallelism cuts by column and
`[in, out]` for what it cuts by row, so that a slice of any layout is one or two runs.

Standard library only.
"""

from __future__ import annotations

from seesaw.families.spec import ModelSpec
from seesaw.layout.format import FormatName, StoredParam
from seesaw.layout.ranges import Range
from seesaw.layout.stored import StoredFormat, fused_params


def stored_params(spec: ModelSpec) -> tuple[StoredParam, ...]:
    """The decoder's parameters in the plain format: fused as in `stored.fused_params`, gate rows
    before up rows; o_proj and down_proj are stored `[in, out]`."""
    return tuple(
        StoredParam(param.name, param.layer, param.shape[::-1], param.cut, "columns")
        if param.is_cut_by_input
        else StoredParam(*param)
        for param in fused_params(spec, spec.head_dim, max(1, spec.intermediate_size))
    )


class PlainFormat(StoredFormat):
    """`WeightFormat` of a model whose elements have `element_bytes` bytes, row after row."""

    name: FormatName = "plain"

    def __init__(self, spec: ModelSpec, element_bytes: int) -> None:
        super().__init__(
            spec,
            element_bytes,
            stored_params(spec),
            head_step=spec.head_dim,
            gate_tile=max(1, spec.intermediate_size),
        )

    def _gate_and_up(self, mlp: Range) -> list[Range]:
        up = self.gate_tile
        return [mlp, Range(up + mlp.start, up + mlp.stop)]
