"""`LayoutChoice`: the layouts that an engine runs, or that a plan proposes, and who chose them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from seesaw.config import ReshardFrom
from seesaw.layout.parallel import ParallelLayout

if TYPE_CHECKING:
    from seesaw.plan.pair_times import PairTimes


@dataclass(frozen=True, slots=True)
class LayoutChoice:
    """Both layouts, over the same devices and with as many replicas; equal where there is one.
    `reason` says who chose them."""

    prefill: ParallelLayout
    decode: ParallelLayout
    reason: str
    reshard_from: ReshardFrom = "auto"
    """Where weights come from when the layout changes; `auto` = as the settings say."""
    times: PairTimes | None = None
    """What a pair that was chosen is predicted to take; with it the choice is made anew while the
    job runs. None where layouts were given."""
    max_num_batched_tokens: int | None = None
    """What was fastest, or None where nothing was planned."""

    @property
    def num_ranks(self) -> int:
        """Over all replicas."""
        return self.decode.num_ranks

    @property
    def dp(self) -> int:
        return self.decode.dp

    def describe(self) -> str:
        if self.prefill == self.decode:
            layouts = f"layout {self.decode}"
        else:
            layouts = f"prefill in {self.prefill}, decode in {self.decode}"
        devices = "1 device" if self.num_ranks == 1 else f"{self.num_ranks} devices"
        return f"{layouts} on {devices}: {self.reason}"
