"""Small scenarios, by hand and at random, and what a run of one is watched with."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from seesaw.config import EngineConfig
from seesaw.families.registry import spec_from_hf
from seesaw.families.spec import ModelSpec
from seesaw.layout.pairs import layouts_for
from seesaw.layout.parallel import ParallelLayout
from seesaw.plan.curve import Curve
from seesaw.plan.machine import Kind, Machine
from seesaw.scheduler.output import SchedulerOutput
from seesaw.simulate import setup
from seesaw.simulate.faults import Death, Faults, SlowRank
from seesaw.simulate.replica import Ran, ReplicaClock
from seesaw.simulate.simulation import HostCosts, Scenario
from tests.plan.devices import make_device, make_links, make_machine


def tiny_spec(num_layers: int = 4, kv_heads: int = 2) -> ModelSpec:
    return spec_from_hf(
        {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
            "intermediate_size": 128, "num_hidden_layers": num_layers, "num_attention_heads": 4,
            "num_key_value_heads": kv_heads, "vocab_size": 256, "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5, "torch_dtype": "float16",
        }
    )  # fmt: skip


def layouts(text: str) -> tuple[ParallelLayout, ParallelLayout]:
    """`pp2 -> tp2`, or one for both."""
    prefill, _, decode = text.partition(" -> ")
    return ParallelLayout.parse(prefill), ParallelLayout.parse(decode or prefill)


def make_config(**settings: Any) -> EngineConfig:
    """KV goes through the tier, unless told otherwise."""
    small = {"model": "tiny", "block_size": 4, "tier_block_size": 8, "kv_path": "tier"}
    return EngineConfig(**small | settings)


def make_scenario(
    requests: list[tuple[float, int, int]], lay: str = "tp1", **fields: Any
) -> Scenario:
    """On devices whose every step takes a second and nothing else does, unless told otherwise;
    fields that EngineConfig has go there."""
    both = layouts(lay)
    machine = make_machine(make_device(step_overhead_s=1.0), both[0].num_ranks)
    known = EngineConfig.__dataclass_fields__
    own = {name: fields.pop(name) for name in list(fields) if name in known}
    return Scenario(
        **{"spec": tiny_spec(), "machine": machine, "layouts": both, "requests": requests,
           "config": make_config(**own), "debug": True, **fields},
    )  # fmt: skip


def random_machine(rng: random.Random, num_devices: int, kind: Kind = "cuda") -> Machine:
    """Any of its parts may be what is slow; devices differ at times."""

    def rate(low: float, high: float) -> float:
        return 10 ** rng.uniform(low, high)

    def device() -> Any:
        return make_device(
            flops=rate(8, 11), memory_bytes_per_s=rate(7, 10), kv_bytes_per_s=rate(6, 9),
            attention_flops=rate(7, 10), elementwise_bytes_per_s=rate(7, 10),
            load_bytes_per_s=rate(5, 8), store_bytes_per_s=rate(5, 8), copy_bytes_per_s=rate(6, 9),
            layer_overhead_s=rate(-5, -3), step_overhead_s=rate(-5, -2),
        )  # fmt: skip

    one = device()
    devices = [device() if rng.random() < 0.2 else one for _ in range(num_devices)]
    devices = [replace(one, kind=kind) for one in devices]
    links = make_links(
        bus=rate(6, 9), latency_s=Curve.flat(rate(-5, -3)), send=rate(6, 9),
        send_latency_s=rate(-5, -3), peer=rate(6, 9),
    )  # fmt: skip
    shared = rate(5, 9) if rng.random() < 0.5 else None
    return make_machine(devices, links=links, host_bytes_per_s=shared)


def random_scenario(rng: random.Random, *, with_faults: bool = False) -> Scenario:
    spec = tiny_spec(rng.choice([3, 4]), rng.choice([1, 2, 4]))
    num_devices = rng.choice([1, 2, 2, 4, 4])
    options = layouts_for(num_devices, spec)
    layers = spec.num_hidden_layers
    options += [
        replace(one, stages=(1, layers - 1)) for one in options if one.pp == 2 and layers % 2
    ]
    decode = rng.choice(options)
    prefill = rng.choice([one for one in options if one.dp == decode.dp])
    policy = rng.choice(["seesaw", "seesaw-cost"])
    if prefill == decode and rng.random() < 0.7:
        policy = "continuous"
    requests, at_s = [], 0.0
    for _ in range(rng.randint(1, 40)):
        requests.append((at_s, rng.randint(1, 60), rng.choice([1, 2, rng.randint(1, 40)])))
        at_s += rng.choice([0.0, rng.expovariate(10.0)])
    answers_known = rng.random() < 0.6
    cap = max(answer for _, _, answer in requests)
    longest = max(prompt + (answer if answers_known else cap) for _, prompt, answer in requests)
    blocks = -(-longest // 4)
    tier = policy != "continuous"
    reload = rng.choice(["missing", "all"]) if prefill != decode else "missing"
    apart = random.Random(rng.random())
    machine = random_machine(rng, num_devices, apart.choice(["cuda", "cuda", "cpu"]))
    return Scenario(
        spec=spec,
        machine=machine,
        layouts=(prefill, decode),
        config=make_config(
            policy=policy,
            max_num_seqs=rng.choice([1, 3, 16]),
            max_num_batched_tokens=rng.choice([8, 32, 128]),
            reload=reload,
            overlap=apart.random() < 0.7,
            host_kv_memory="1GiB" if tier else None,
        ),
        requests=requests,
        answers_known=answers_known,
        host=rng.choice([HostCosts(), HostCosts(step_s=1e-3, row_s=1e-5)]),
        max_steps_in_flight=rng.choice([1, 2, 3]),
        num_blocks=blocks + rng.choice([0, 2, 10, 100]),
        prefill_blocks=blocks + rng.choice([0, 5, 50]) if tier else None,
        tier_blocks=-(-longest // 8) + rng.choice([0, 3, 100]) if tier else None,
        faults=random_faults(rng, num_devices) if with_faults else Faults(),
        seed=rng.randrange(1000),
        debug=True,
    )


def random_faults(rng: random.Random, num_devices: int) -> Faults:
    def rank() -> int:
        return rng.randrange(num_devices)

    begins = [rng.uniform(0, 2) for _ in range(rng.randint(0, 2))]
    return Faults(
        late_share=rng.choice([0.0, 0.1, 0.5, 1.0]),
        late_s=10 ** rng.uniform(-4, 0),
        slow=[
            SlowRank(rank(), at_s, at_s + rng.uniform(0.1, 2), rng.uniform(1, 20))
            for at_s in begins
        ],
        deaths=[Death(rank(), rng.uniform(0, 3)) for _ in range(rng.choice([0, 0, 1, 2]))],
        restart_s=rng.uniform(0, 2),
    )


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, SchedulerOutput, Ran]]]:
    """Yields the list that each step handed over is added to: (first rank of its replica, step,
    what came of it)."""
    seen: list[tuple[int, SchedulerOutput, Ran]] = []

    class Watched(ReplicaClock):
        def submit(self, step: SchedulerOutput, now_s: float) -> Ran:
            ran = super().submit(step, now_s)
            seen.append((self._first_rank, step, ran))
            return ran

    with monkeypatch.context() as patch:
        patch.setattr(setup, "ReplicaClock", Watched)
        yield seen
