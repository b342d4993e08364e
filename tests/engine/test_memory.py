"""The memory of the machine at hand, and that an engine has what `plan/memory.py` says of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from seesaw.config import EngineConfig
from seesaw.engine import host, loader
from seesaw.engine.engine import Engine
from seesaw.kvcache.pool import KVCache
from seesaw.layout.parallel import ParallelLayout
from seesaw.ops.native import native
from seesaw.plan.choice import LayoutChoice
from seesaw.plan.memory import Space, plan_memory
from seesaw.weights.checkpoint import open_checkpoint

GIB = 2**30


def test_the_real_machine_has_memory() -> None:
    free, total = host.host_memory()
    assert 0 < free <= total


def test_devices_on_cpu_have_the_hosts_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "host_memory", lambda: (4 * GIB, 8 * GIB))
    assert host.device_space(torch.device("cpu"), 3) == Space("cpu", *[4 * GIB, 8 * GIB] * 2)


def test_the_smallest_gpu_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [24, 40, 16, 40]

    def properties(index: int) -> object:
        return type("Properties", (), {"total_memory": sizes[index] * GIB})

    monkeypatch.setattr(host, "host_memory", lambda: (4 * GIB, 8 * GIB))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20 * GIB, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    gpu = torch.device("cuda", 0)
    on_host = (4 * GIB, 8 * GIB)
    assert host.device_space(gpu, 1) == Space("cuda", 20 * GIB, 24 * GIB, *on_host)
    assert host.device_space(gpu, 2) == Space("cuda", 20 * GIB, 24 * GIB, *on_host)
    assert host.device_space(gpu, 4) == Space("cuda", 16 * GIB, 16 * GIB, *on_host)


@pytest.mark.parametrize("policy", ["continuous", "seesaw"])
def test_an_engine_has_what_the_plan_says(tiny_checkpoint, monkeypatch, policy: str) -> None:
    """The same numbers, and weights and pools of just these bytes."""
    space = Space("cpu", 4 * GIB, 8 * GIB, 4 * GIB, 8 * GIB)
    monkeypatch.setattr(loader, "device_space", lambda device, num_ranks: space)
    pools = []
    allocate = KVCache.allocate

    def recording(*sizes: Any, **settings: Any) -> KVCache:
        kv = allocate(*sizes, **settings)
        pools.append(kv.pool.nbytes)
        return kv

    monkeypatch.setattr(KVCache, "allocate", recording)
    uses_tier = policy == "seesaw"
    config = EngineConfig(
        model=str(tiny_checkpoint("llama")),
        dtype="float32",
        device="cpu",
        policy=policy,
        device_memory="600MiB",
        host_kv_memory="32MiB" if uses_tier else None,
        max_num_batched_tokens=64,
        max_num_seqs=4,
    )
    checkpoint = open_checkpoint(config)
    engine = Engine(config, checkpoint=checkpoint)
    try:
        one = ParallelLayout()
        choice = LayoutChoice(one, one, "the default")
        has_kernels = native() is not None
        made = plan_memory(config, checkpoint.spec, 4, space, choice, uses_tier, native=has_kernels)
        assert engine.memory_plan == made
        assert sum(pools) == made.kv_bytes
        params = checkpoint.load_params(
            torch.float32, torch.device("cpu"), None, "panels" if has_kernels else "plain"
        )
        assert sum(param.nbytes for param in params.values()) == made.arena_bytes
    finally:
        engine.shutdown()
