"""The arena: the one piece of memory that holds a rank's weights, in any layout.

Owns the memory. Addresses come from `layout` (`ArenaPlan`) and never change; what is written where
at a change of layout is `reshard.py`'s business.
"""

from __future__ import annotations

import torch

from seesaw.layout import ArenaPlan, RankRanges
from seesaw.layout.format import WeightFormat
from seesaw.weights.tied import add_tied_head


class Arena:
    """`bytes`: uint8 `[plan.nbytes]` on `device`, of no meaning until weights are written to it."""

    def __init__(self, plan: ArenaPlan, device: torch.device) -> None:
        self.plan = plan
        self.bytes = torch.empty(plan.nbytes, dtype=torch.uint8, device=device)

    def params(
        self, fmt: WeightFormat, layout_index: int, ranges: RankRanges, dtype: torch.dtype
    ) -> dict[str, torch.Tensor]:
        """Views by name of what a rank with `ranges` holds in layout `layout_index` of the plan,
        in the shapes of `fmt`. They hold weights of that layout while the arena does.

        A tied `lm_head.weight` is the embedding's tensor itself.
        """
        offsets = self.plan.offsets[layout_index]
        params = {
            param.name: self.view(offsets[param.name], fmt.local_shape(param, ranges), dtype)
            for param in fmt.params
            if fmt.holds(param, ranges)
        }
        add_tied_head(params, fmt)
        return params

    def view(self, start: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The tensor of `shape` that begins at byte `start`, a multiple of the element's size."""
        nbytes = dtype.itemsize
        for extent in shape:
            nbytes *= extent
        return self.bytes[start : start + nbytes].view(dtype).view(shape)
