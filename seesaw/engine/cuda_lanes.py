"""Lanes of a GPU: a stream for each share of its SMs, all made at the start.

A split is a pair of green contexts (CUDA 12.5 and up), which have SMs of their own and the rest in
common. Where there are none, lanes have a stream each, and the one that decodes comes first: who
computes on which SM is then up to the card. Nothing here was measured.
"""

from __future__ import annotations

import torch

from seesaw.cuda.green_contexts import NoGreenContexts, make_splits
from seesaw.engine.device_clock import CudaClock
from seesaw.log import get_logger
from seesaw.plan.lane_costs import UNIT_SMS, sm_units

logger = get_logger(__name__)


class LaneClock(CudaClock):
    """Of one lane. `streams` by units of its share; where there is none, that of all SMs."""

    def __init__(
        self,
        device: torch.device,
        streams: dict[int, torch.cuda.Stream],
        units: int,
        *,
        ahead: bool,
        priority: int,
    ) -> None:
        super().__init__(device, ahead=ahead, priority=priority)
        self._streams = streams
        self._units = units
        self._whole = self._stream

    def take(self, share: float) -> None:
        """Steps from now on run on this share, behind those of the lane before them."""
        stream = self._streams.get(round(share * self._units), self._whole)
        if stream != self._stream:
            stream.wait_stream(self._stream)
            self._stream = stream


def make_clocks(device: torch.device, *, profile: bool) -> list[LaneClock]:
    """Of lanes 0 and 1."""
    units = sm_units(torch.cuda.get_device_properties(device).multi_processor_count)
    streams: list[dict[int, torch.cuda.Stream]] = [{}, {}]
    try:
        for count, pair in make_splits(device.index or 0, units, UNIT_SMS).items():
            for lane, own in enumerate((count, units - count)):
                streams[lane][own] = torch.cuda.ExternalStream(pair[lane], device)  # type: ignore[no-untyped-call]
        logger.info(
            "lanes share the SMs by green contexts: %d of %d splits of %d units of %d SMs",
            len(streams[0]), units - 1, units, UNIT_SMS,
        )  # fmt: skip
    except NoGreenContexts as error:
        logger.warning("lanes share the SMs by the priority of their streams alone: %s", error)
    return [
        LaneClock(device, streams[lane], units, ahead=not profile, priority=-lane)
        for lane in range(2)
    ]
