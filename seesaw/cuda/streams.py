"""Streams and events: what of them the rest of seesaw uses, and those that a GPU has.

Order between streams is made by events; nothing waits for a whole device. Code that takes `Stream`
runs on the CPU as well, where tests carry out its work in any order that events allow.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch


class Event(Protocol):
    def query(self) -> bool:
        """Whether all that it was recorded behind is done."""
        ...

    def synchronize(self) -> None:
        """Wait for that. Raises where the device has failed."""
        ...


class Stream(Protocol):
    def run(self, work: Callable[[], None]) -> None:
        """Have `work` done after all that the stream has been given: called at once, with the
        stream as the current one, it begins work on the device and waits for nothing."""
        ...

    def record(self) -> Event: ...

    def wait(self, event: Event) -> None:
        """What the stream is given from now on begins after `event`."""
        ...

    def empty(self, nbytes: int) -> torch.Tensor:
        """uint8 `[nbytes]` on the device, to be used first on this stream."""
        ...


class CudaEvent:
    """Of `stream`, or of the current one of `device`. Whoever waits sleeps."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._event: Any = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._event.record(stream)

    def query(self) -> bool:
        return bool(self._event.query())

    def synchronize(self) -> None:
        self._event.synchronize()

    def hold(self, stream: torch.cuda.Stream) -> None:
        stream.wait_event(self._event)


class CudaStream:
    """A `Stream`. `torch`: the same for torch."""

    def __init__(self, device: torch.device, priority: int = 0) -> None:
        self.torch = torch.cuda.Stream(device, priority=priority)  # type: ignore[no-untyped-call]

    def run(self, work: Callable[[], None]) -> None:
        with torch.cuda.stream(self.torch):  # makes its device the current one too
            work()

    def record(self) -> CudaEvent:
        return CudaEvent(self.torch)

    def wait(self, event: Event) -> None:
        assert isinstance(event, CudaEvent), f"an event of something else: {event}"
        event.hold(self.torch)

    def empty(self, nbytes: int) -> torch.Tensor:
        with torch.cuda.stream(self.torch):
            return torch.empty(nbytes, dtype=torch.uint8, device=self.torch.device)


@dataclass(frozen=True, slots=True)
class Streams:
    """Of one GPU, beside that on which steps are computed (`engine.device_clock`). KV goes over the
    bus on `store` and `load`, and is put in order for it on `gather` and `scatter`, so that one
    piece is put in order while another one is on its way. `weights` brings those of the next
    layout, `peer` what of them other ranks have, `relay` takes KV from pool to pool. What else
    ranks say to each other goes on streams that NCCL makes itself.
    """

    gather: CudaStream
    store: CudaStream
    load: CudaStream
    scatter: CudaStream
    weights: CudaStream
    relay: CudaStream
    peer: CudaStream


def streams(device: torch.device) -> Streams:
    """Those of `device`, made once in a process."""
    return _streams(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _streams(index: int) -> Streams:
    device = torch.device("cuda", index)
    return Streams(*(CudaStream(device) for _ in fields(Streams)))


def now(device: torch.device) -> CudaEvent:
    """After all that the current stream of `device` has been given."""
    return CudaEvent(torch.cuda.current_stream(device))
