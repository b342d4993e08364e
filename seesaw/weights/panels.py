"""Between plain rows and panels (`layout/panels.py`), by the kernels of csrc/cpu/pack.h.

Checks that a copy stays within its tensors; knows no model and no file.
"""

from __future__ import annotations

import torch

from seesaw.layout.panels import PANEL
from seesaw.weights.placement import Run

WORD_BYTES = 4


def pack(rows: torch.Tensor, run: Run, panels: torch.Tensor) -> None:
    """`rows` `[run.num_rows, depth]` to columns of `panels` `[count, depth, 32]`, from
    `run.target` on; bfloat16 or float32 on the CPU. What else is in the panels stays."""
    from seesaw import _cpu

    _cpu.pack_panels(source=rows.data_ptr(), target=panels.data_ptr(), **_sizes(rows, run, panels))


def unpack(panels: torch.Tensor, run: Run) -> torch.Tensor:
    """The way back: rows `[run.num_rows, depth]`, contiguous."""
    from seesaw import _cpu

    rows = torch.empty(run.num_rows, panels.shape[1], dtype=panels.dtype)
    _cpu.unpack_panels(
        source=panels.data_ptr(), target=rows.data_ptr(), **_sizes(rows, run, panels)
    )
    return rows


def _sizes(rows: torch.Tensor, run: Run, panels: torch.Tensor) -> dict[str, int]:
    count, depth, _ = panels.shape
    size = panels.element_size()
    last = run.num_rows - 1
    end = run.target + last // run.group * run.step + last % run.group
    assert rows.shape == (run.num_rows, depth), f"{rows.shape} for {run} in {panels.shape}"
    assert run.num_rows == 0 or end < count * PANEL, f"{run} leaves {panels.shape}"
    assert {(x.dtype, x.device.type) for x in (rows, panels)} == {(panels.dtype, "cpu")}
    assert depth * size % WORD_BYTES == 0, f"depth {depth} of {panels.dtype}"
    assert (*panels.stride()[1:], rows.stride(1)) == (PANEL, 1, 1), "not panels and rows"
    return {
        "num_rows": run.num_rows,
        "words": depth * size // WORD_BYTES,
        "row_stride": rows.stride(0) * size,
        "panel_stride": panels.stride(0) * size,
        "first": run.target,
        "group": max(1, run.group),
        "step": max(1, run.step),
    }
