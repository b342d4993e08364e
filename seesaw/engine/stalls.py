"""What computing stood still for, in seconds, and which loads rows waited for."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Stalls:
    """Seconds in which ranks had nothing to compute but for what was on its way. `weights_s`: the
    rank of each step that waited longest for weights of its layers; `stages_s`: likewise for the
    stage before it. `loads_s`, `stores_s`: no step was in flight while KV was being loaded, or if
    none was, stored; over replicas. `rows_loading`: rows that steps of decode did not have since
    their KV was being loaded, added up over steps. `visible_s`: of each change of layout, from the
    last layer of the old phase to the first of the new one, less waiting for a stage; mean over
    ranks, added up over changes.
    """

    weights_s: float = 0.0
    stages_s: float = 0.0
    loads_s: float = 0.0
    stores_s: float = 0.0
    rows_loading: int = 0
    visible_s: float = 0.0


@dataclass(slots=True)
class IdleClock:
    """Of one replica: charges the time without a step in flight to what is being copied."""

    stalls: Stalls
    under_way: Counter[str] = field(default_factory=Counter)
    """Transfers by kind: "store", or what a request waits for to run."""
    _since: tuple[float, bool] | None = None  # and whether only stores were under way

    def look(self, num_steps: int) -> None:
        """After something has begun or ended: `num_steps` are in flight now."""
        now_s = time.perf_counter()
        if self._since is not None:
            since_s, only_stores = self._since
            if only_stores:
                self.stalls.stores_s += now_s - since_s
            else:
                self.stalls.loads_s += now_s - since_s
        self._since = None
        total = self.under_way.total()
        if num_steps == 0 and total:
            self._since = now_s, self.under_way["store"] == total
