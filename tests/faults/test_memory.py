"""Memory that the system refuses a rank: named with its bytes, nothing left; a tier that is full is
no failure.
"""

from __future__ import annotations

import resource

import pytest
import torch

from seesaw.engine.ranks import Ranks
from seesaw.errors import EngineDeadError
from seesaw.hostmem import shared
from seesaw.kvcache.tier import HostTier
from tests.engine.rank_harness import engine_on, generate
from tests.faults.conftest import children
from tests.faults.strike import PROMPTS, SAMPLING, SMALL_TIER

TIER_BYTES = 6 << 30
ROOM_BYTES = 3 << 30
"""For all that a rank maps beside the tier: malloc sets 128 MiB aside for a thread."""


def test_memory_that_a_rank_cannot_have_is_named_with_its_bytes(tiny_checkpoint, monkeypatch):
    before = children()
    set_up = Ranks.set_up

    def bounding(self, rank, setup, files):
        if rank == 1:
            while not self._started[rank]:  # what Python and torch map is mapped then
                assert self.receive(0.1) is None
            with open(f"/proc/{self.pids[rank]}/statm") as file:
                mapped = int(file.read().split()[0]) * resource.getpagesize()
            most = mapped + ROOM_BYTES
            resource.prlimit(self.pids[rank], resource.RLIMIT_AS, (most, most))
        set_up(self, rank, setup, files)

    monkeypatch.setattr(Ranks, "set_up", bounding)
    with (
        pytest.raises(
            EngineDeadError, match=r"rank 1 failed \(loading weights\).*the host tier of \d+ bytes"
        ) as told,
        engine_on(None, tiny_checkpoint("llama"), "pp2", "tp2", host_kv_memory=str(TIER_BYTES)),
    ):
        pass
    assert "Lower host_kv_memory" in str(told.value)
    assert children() == before


class RefusingCuda:
    """Takes two pieces of the tier, then no more."""

    def __init__(self, device: torch.device) -> None:
        self.held: set[int] = set()
        RefusingCuda.last = self

    def register(self, address: int, nbytes: int) -> int:
        if len(self.held) == 2:
            return 2
        self.held.add(address)
        return 0

    def unregister(self, address: int) -> int:
        self.held.remove(address)
        return 0


def test_page_locking_that_is_refused_midway_ends_the_engine_by_name(tiny_checkpoint, monkeypatch):
    """Copies to memory that CUDA does not know would not overlap with anything, so there is no
    going on without; the pieces that were locked are let go."""
    monkeypatch.setattr(shared, "CudaHostMemory", RefusingCuda)
    create = HostTier.create.__func__

    def locking(cls, shape):
        tier = create(cls, shape)
        tier.begin_page_lock(torch.device("cpu"), shape.block_bytes)
        return tier

    monkeypatch.setattr(HostTier, "create", classmethod(locking))
    model = tiny_checkpoint("llama")
    with engine_on(None, model, "tp1", "tp1", **SMALL_TIER) as engine:
        with pytest.raises(EngineDeadError, match="refused to page-lock host memory") as told:
            generate(engine, PROMPTS, SAMPLING)
        assert "lower host_kv_memory" in str(told.value)
    assert not RefusingCuda.last.held
