"""Two lanes of steps on one device: the compute units that each of them has, and what their runners
share.

On a CPU a unit is a core, or whole cores where there are many: each lane computes on a thread pool
of its own, lane 0 on the first cores and lane 1 on the last. On a GPU it is 8 SMs
(`cuda_lanes.py`). A lane goes over to another share when its next step begins; none waits for the
other, so that for the rest of a step both may be on the same cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from seesaw.engine.device_clock import DeviceClock, HostClock
from seesaw.engine.messages import RankSetup
from seesaw.engine.request_state import RequestState


@dataclass(frozen=True, slots=True)
class Lane:
    """What the runner of lane `number` has: requests, which both know, what tells when its steps
    are done, and `take`, which has its thread compute on a share of the device from then on."""

    number: int
    take: Callable[[float], None]
    clock: DeviceClock = field(default_factory=HostClock)
    requests: dict[str, RequestState] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """In a trace."""
        return "compute" if self.number == 0 else f"compute {self.number + 1}"


def make_lanes(setup: RankSetup) -> list[Lane]:
    """Both lanes of the device, which is this process's."""
    requests: dict[str, RequestState] = {}
    device = torch.device(setup.device)
    if device.type == "cuda":
        # Here, since a CPU needs none of it.
        from seesaw.engine.cuda_lanes import make_clocks

        clocks = make_clocks(device, profile=setup.profile)
        return [Lane(number, clock.take, clock, requests) for number, clock in enumerate(clocks)]
    return [
        Lane(number, CoreShare(number, setup).take, HostClock(), requests) for number in range(2)
    ]


class CoreShare:
    """The cores of one lane. `take` is called by the thread that runs its steps."""

    def __init__(self, lane: int, setup: RankSetup) -> None:
        self._lane = lane
        self._num_threads = setup.num_threads
        self._native = setup.weights == "panels"
        self._cores = _cores(setup)
        self._count = 0

    def take(self, share: float) -> None:
        """Both lanes together take all threads where their shares add up to 1."""
        count = lane_threads(self._lane, share, self._num_threads)
        if count == self._count:
            return
        self._count = count
        if not self._native:
            torch.set_num_threads(count)  # of this thread
            return
        from seesaw import _cpu

        cores = self._cores if self._lane == 0 else self._cores[::-1]
        _cpu.configure_lane_threads(self._lane, count, cores[:count])


def lane_threads(lane: int, share: float, num_threads: int) -> int:
    """How many of the device's threads a lane computes on."""
    if lane == 0:
        return max(1, int(share * num_threads + 1e-6))
    return max(1, num_threads - int((1 - share) * num_threads + 1e-6))


def _cores(setup: RankSetup) -> list[int]:
    """One for each thread, where threads are to stay on them: as asked for, or all that this
    process may use. Where it may use others too, the system knows better which are free."""
    if setup.pinned and setup.cores is not None:
        return list(setup.cores)
    usable = sorted(os.sched_getaffinity(0))
    return usable if len(usable) == setup.num_threads else []
