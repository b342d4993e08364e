"""Lanes of a GPU: on which stream what is done, by clocks that note it, and on a GPU that answers
are those of one lane. `make gpu-check` runs this.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import seesaw.engine.lanes
from seesaw.engine import cuda_lanes
from seesaw.engine.device_clock import HostClock
from seesaw.kvcache.pool import KVCache
from tests.engine.test_lanes import NEXUS, answers, prompts_of


class NotingClock(HostClock):
    """`events` of all clocks in order: what was done by which thread."""

    events: list[tuple[str, str]]

    def scope(self) -> contextlib.AbstractContextManager[object]:
        self.events.append(("scope", threading.current_thread().name))
        return super().scope()

    def follow(self) -> None:
        self.events.append(("follow", threading.current_thread().name))


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    found = NotingClock.events = []
    allocate = KVCache.allocate

    def noted(*args: Any, **kwargs: Any) -> KVCache:
        found.append(("pool", threading.current_thread().name))
        return allocate(*args, **kwargs)

    monkeypatch.setattr(seesaw.engine.lanes, "HostClock", NotingClock)
    monkeypatch.setattr(KVCache, "allocate", noted)
    monkeypatch.setenv("SEESAW_DEBUG_BLOCKS", "1")
    return found


def test_lanes_begin_behind_what_made_weights_pools_and_decoders(
    events: list[tuple[str, str]], tiny_checkpoint: Callable[..., Path]
) -> None:
    """Pools are zeroed on the stream that is current there, for which lanes' streams do not wait by
    themselves."""
    answers(tiny_checkpoint("llama"), prompts_of(2, 20), **NEXUS)
    for thread in ("seesaw-worker", "seesaw-worker-2"):
        own = [what for what, who in events if who == thread and what != "pool"]
        assert own[:2] == ["follow", "scope"], own[:4]
        assert own.count("follow") == 1
        assert events.index(("pool", "seesaw-worker")) < events.index(("follow", thread))


def test_only_a_lane_uses_its_stream(
    events: list[tuple[str, str]], tiny_checkpoint: Callable[..., Path]
) -> None:
    """Blocks are poisoned by the thread that plans, while a lane may go over to another stream."""
    answers(tiny_checkpoint("llama"), prompts_of(12, 100), **NEXUS)
    users = {who for what, who in events if what == "scope"}
    assert users == {"seesaw-worker", "seesaw-worker-2"}


class FakeStream:
    def __init__(self) -> None:
        self.waited_for: list[object] = []

    def wait_stream(self, other: object) -> None:
        self.waited_for.append(other)


def test_a_lane_goes_over_to_the_stream_of_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, quarter, half = FakeStream(), FakeStream(), FakeStream()

    def made(self: Any, device: object, *, ahead: bool, priority: int) -> None:
        self._stream = whole

    monkeypatch.setattr(cuda_lanes.CudaClock, "__init__", made)
    clock = cuda_lanes.LaneClock(
        torch.device("cpu"), {4: quarter, 8: half}, 16, ahead=True, priority=0  # type: ignore[dict-item]
    )  # fmt: skip
    for share, stream, before in (
        (0.25, quarter, whole), (0.5, half, quarter), (0.75, whole, half), (0.25, quarter, whole),
    ):  # fmt: skip
        clock.take(share)
        assert clock._stream is stream
        assert stream.waited_for[-1] is before
        clock.take(share)
        assert stream.waited_for[-1] is before, "a stream waits for itself"
    assert [len(one.waited_for) for one in (whole, quarter, half)] == [1, 2, 1]


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_answers_on_a_gpu_are_those_of_one_lane(
    family: str, device: str, tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if device != "cuda":
        pytest.skip("needs --device cuda")
    monkeypatch.setenv("SEESAW_DEBUG_BLOCKS", "1")
    model, prompts = tiny_checkpoint(family), prompts_of(24, 100)
    own = {"device": device, "device_memory": "1GiB", "cpu_threads": None}
    expected, _ = answers(model, prompts, **own)
    for share in (0.25, 0.5):
        options = {"prefill_share": share}
        got, counts = answers(model, prompts, **own, **NEXUS, policy_options=options)
        assert got == expected
        assert counts.num_share_changes > 0
