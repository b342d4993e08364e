"""`PanelFormat`: matrices in panels of 32 columns, in which a CPU's kernels read them.

A matrix [out, in] is `[panels, in, 32]`: column `c` of panel `p` is row 32 * p + c of the matrix,
zero where there is none. Of 16-bit elements two neighbours along `in` stand side by side, so that
the bytes of a panel are in / 2 rows of 32 pairs; either way `in` can be cut at even places and
`out` between panels, without a byte changing its order. Experts are matrices one after another,
`[experts, panels, in, 32]`, and stay whole. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable

from seesaw.families.spec import ModelSpec
from seesaw.layout.format import ByteRun, FormatName, StoredParam, Window
from seesaw.layout.parallel import ParallelLayout
from seesaw.layout.ranges import MLP_TILE, VOCAB_TILE, Range, RankRanges
from seesaw.layout.stored import EMBEDDING, FusedParam, StoredFormat, fused_params, up_to

PANEL = 32
"""Columns; gate and up have half of them each."""

HEAD_DIMS = range(16, 257, 16)
DTYPES = ("bfloat16", "float32")


def panels_suit(spec: ModelSpec, dtype: str, layouts: Iterable[ParallelLayout] = ()) -> str | None:
    """Why a model in `dtype`, cut as in `layouts`, cannot be in panels; None where it can."""
    if dtype not in DTYPES:
        return f"{dtype} weights, and kernels are of {' and '.join(DTYPES)}"
    if spec.head_dim not in HEAD_DIMS:
        return f"head_dim {spec.head_dim} is no multiple of 16 up to {HEAD_DIMS[-1]}"
    tiles = [("vocab_size", spec.vocab_size, VOCAB_TILE)]
    depths = [("hidden_size", spec.hidden_size)]
    if spec.num_plain_layers:
        tiles.insert(0, ("intermediate_size", spec.intermediate_size, MLP_TILE))
        depths.append(("intermediate_size", spec.intermediate_size))
    if spec.num_experts:
        depths.append(("moe_intermediate_size", spec.moe_intermediate_size))
    for name, size in depths:
        if size % 2:
            return f"{name} {size} is odd"
    for layout in layouts:
        for name, size, tile in tiles:
            if layout.tp > -(-size // tile):
                return f"{name} {size} cannot be cut into {layout.tp} parts of whole {tile}s"
    return None


class PanelFormat(StoredFormat):
    """`WeightFormat` of a model that panels suit (`panels_suit`). Matrices are in panels but an
    embedding that is not the head too, those of experts one after another; biases are padded as the
    panels of their matrix; norms are as they are."""

    name: FormatName = "panels"

    def __init__(self, spec: ModelSpec, element_bytes: int) -> None:
        head_step = up_to(spec.head_dim, PANEL)
        super().__init__(
            spec,
            element_bytes,
            [_stored(spec, param) for param in fused_params(spec, head_step, MLP_TILE)],
            head_step=head_step,
            gate_tile=MLP_TILE,
        )

    def local_shape(self, param: StoredParam, ranges: RankRanges) -> tuple[int, ...]:
        if _is_cut_in_whole_rows(param):
            return super().local_shape(param, ranges)
        panels, depth, _ = param.shape
        size = sum(run.size for run in self.runs(param, ranges)) // self._panel_row_bytes
        if _is_cut_by_input(param):
            return (panels, size // panels, PANEL)
        return (size // depth, depth, PANEL)

    def window(self, param: StoredParam, ranges: RankRanges) -> Window | None:
        if not _is_cut_by_input(param):
            return super().window(param, ranges)
        runs = self.runs(param, ranges)
        return Window(runs[0].start, (param.shape[1] * PANEL, PANEL, 1)) if runs else None

    def _runs(self, param: StoredParam, ranges: RankRanges) -> list[ByteRun]:
        if _is_cut_in_whole_rows(param):
            return super()._runs(param, ranges)
        panels, depth, _ = param.shape
        row = self._panel_row_bytes
        if _is_cut_by_input(param):
            (held,) = self._cut(param, ranges)
            if held.size == depth:
                return [ByteRun(0, panels * depth * row)]
            return [
                ByteRun((panel * depth + held.start) * row, held.size * row)
                for panel in range(panels)
            ]
        return [
            ByteRun(run.start * depth * row, run.size * depth * row)
            for run in map(_panels, self._cut(param, ranges))
        ]

    @property
    def _panel_row_bytes(self) -> int:
        return PANEL * self._element_bytes

    def _gate_and_up(self, mlp: Range) -> list[Range]:
        assert mlp.start % MLP_TILE == 0, f"{mlp} is cut off the tiles"
        return [Range(2 * mlp.start, 2 * up_to(mlp.stop, MLP_TILE))]


def _stored(spec: ModelSpec, param: FusedParam) -> StoredParam:
    name, layer, shape, cut = param
    if cut == "experts":
        experts, rows, hidden = shape
        columns, depth = (hidden, rows) if param.is_expert_down else (_gated(rows), hidden)
        panels = -(-columns // PANEL)
        return StoredParam(name, layer, (experts, panels, depth, PANEL), cut, "panels")
    if name == EMBEDDING and not spec.tie_word_embeddings:
        return StoredParam(*param)
    if len(shape) == 2:
        panels = -(-shape[0] // PANEL)
        return StoredParam(name, layer, (panels, shape[1], PANEL), cut, "panels")
    if name.endswith(".bias"):
        return StoredParam(name, layer, (up_to(shape[0], PANEL),), cut)
    return StoredParam(*param)


def _gated(rows: int) -> int:
    """Columns for so many rows of gate and up together."""
    return 2 * up_to(rows // 2, MLP_TILE)


def _is_cut_in_whole_rows(param: StoredParam) -> bool:
    """Whether a rank holds whole entries of the first dim: rows, experts, or all there are."""
    return param.order != "panels" or param.cut in ("experts", "none")


def _is_cut_by_input(param: StoredParam) -> bool:
    return param.order == "panels" and param.cut in ("query", "mlp")


def _panels(columns: Range) -> Range:
    """Those of `columns`, which begin with one."""
    assert columns.start % PANEL == 0, f"columns {columns} begin within a panel"
    return Range(columns.start // PANEL, -(-columns.stop // PANEL))
