"""What steps cost on a part of a device, for policies with lanes: any costs will do for rules."""

from __future__ import annotations

from collections.abc import Sequence

from seesaw.plan.lane_costs import Beside
from seesaw.plan.work import Work


class FakeLaneCosts:
    """As `LaneCosts`: a second for each token, shared out to all units, half as many again where
    the other lane has tokens too."""

    def work(self, rows: Sequence[tuple[int, int, bool]]) -> Work:
        return Work(num_tokens=sum(count for _, count, _ in rows), num_rows=len(rows))

    def seconds(self, work: Work, units: int, beside: Beside | None = None) -> float:
        slowed = 1.5 if beside is not None and beside.work.num_tokens else 1.0
        return slowed * (1 + work.num_tokens / units)
