"""`PlainFormat`: rows one after another, `[out, in]` for what tensor parallelism cuts by column and
`[in, out]` for what it cuts by row, so that a slice of any layout is one or two runs.

Standard library only.
"""

from __future__ import annotations

from seesaw.families.spec import ModelSpec
from seesaw.layout.format import FormatName, StoredParam
from seesaw.layout.ranges import Range
from seesaw.layout.stored import FusedParam, StoredFormat, fused_params


def stored_params(spec: ModelSpec) -> tuple[StoredParam, ...]:
    """The decoder's parameters in the plain format: fused as in `stored.fused_params`, gate rows
    before up rows; o_proj and down_proj are stored `[in, out]`, those of experts too."""
    return tuple(_stored(param) for param in fused_params(spec, spec.head_dim, None))


def _stored(param: FusedParam) -> StoredParam:
    if param.is_cut_by_input:
        return StoredParam(param.name, param.layer, param.shape[::-1], param.cut, "columns")
    return StoredParam(*param, order="columns" if param.is_expert_down else "rows")


class PlainFormat(StoredFormat):
    """`WeightFormat` of a model whose elements have `element_bytes` bytes, row after row."""

    name: FormatName = "plain"

    def __init__(self, spec: ModelSpec, element_bytes: int) -> None:
        super().__init__(
            spec,
            element_bytes,
            stored_params(spec),
            head_step=spec.head_dim,
            gate_tile=None,
        )

    def _gate_and_up(self, mlp: Range) -> list[Range]:
        up = self._spec.intermediate_size
        return [mlp, Range(up + mlp.start, up + mlp.stop)]
