"""The two systems that the paper compares, as scenarios: vLLM 0.5.4 in one layout, and this runtime
in two. What is assumed of either stands here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from seesaw.config import EngineConfig
from seesaw.families.spec import ModelSpec
from seesaw.layout.pairs import layouts_for
from seesaw.layout.parallel import ParallelLayout
from seesaw.layout.plain import PlainFormat
from seesaw.plan.cost_model import CostModel
from seesaw.plan.estimate import name_of
from seesaw.plan.machine import Machine
from seesaw.plan.machine_files import read_machines
from seesaw.plan.work import WorkCounter
from seesaw.simulate.experiments.models import model
from seesaw.simulate.scenario import Arrival, HostCosts, Scenario

HOST_MEMORY = 80 * 2**30
"""Per device, in all runs of the paper."""
SEQUENCES = 256
"""max_num_seqs of each scheduler of vLLM 0.5.4: its default."""
CHUNKS = (512, 2048)
"""Token budgets among which the baseline's is tuned."""
PREFILL_TOKENS = (1024, 2048, 4096)
"""Micro-batches of a pure prefill; the paper's artifact has 4096 at most. Small ones leave more
memory to answers."""
UTILIZATION = 0.9
BLOCK = 16
BASELINE = "seesaw.simulate.experiments.virtual_engines:VirtualEngines"


def paper_machine(name: str, count: int) -> Machine:
    """The first `count` devices of a machine, with the paper's host memory."""
    (machine,) = read_machines(name)
    return replace(machine.first(count), host_memory_bytes=count * HOST_MEMORY)


@cache
def baseline_host() -> HostCosts:
    """What the driver of vLLM before 0.6 costs, which plans while devices wait.

    Its authors' profile of Llama 3 8B on one H100 gives 38% of the time to the GPU and 29% to
    scheduling and preparing steps (blog.vllm.ai/2024/09/05/perf-update.html; the 33% of the HTTP
    server are left out). With the time of that step by our cost model, full and at the mean context
    of a ShareGPT answer, this is a cost per row.
    """
    (machine,) = read_machines("1xh100-sxm")
    spec = model("llama3-8b")
    costs = CostModel(spec, machine, ParallelLayout(), "float16")
    work = WorkCounter(spec).count([(1, 500, True)] * SEQUENCES)
    row_s = 0.29 / 0.38 * sum(costs.stages_s(work)) / SEQUENCES
    # Replicas of that release are servers of their own.
    return HostCosts(row_s=row_s, per_replica=True)


def offline(prompt: int, answer: int, count: int) -> Sequence[Arrival]:
    return [Arrival(0.0, prompt, answer)] * count


def baseline(
    spec: ModelSpec, machine: Machine, layout: ParallelLayout, requests: Sequence[Arrival],
    chunk: int,
) -> Scenario:  # fmt: skip
    """vLLM 0.5.4 in one layout, chunked prefill on."""
    return Scenario(
        spec=spec,
        machine=machine,
        layouts=(layout, layout),
        config=_config(spec, layout, chunk, policy=BASELINE),
        requests=requests,
        host=baseline_host(),
        max_steps_in_flight=1,
    )


def static(
    spec: ModelSpec, machine: Machine, layout: ParallelLayout, requests: Sequence[Arrival],
    chunk: int,
) -> Scenario:  # fmt: skip
    """This runtime in one layout: `continuous`, which plans ahead and keeps micro-batches equal."""
    config = _config(spec, layout, chunk)
    return Scenario(
        spec=spec, machine=machine, layouts=(layout, layout), config=config, requests=requests
    )


def split(
    spec: ModelSpec, machine: Machine, layouts: tuple[ParallelLayout, ParallelLayout],
    requests: Sequence[Arrival], chunk: int, *, tier_bytes: int | None = None,
) -> Scenario:  # fmt: skip
    """This runtime in two layouts. The tier is what the host has beside the weights."""
    if tier_bytes is None:
        image = PlainFormat(spec, 2).image_bytes
        tier_bytes = int(0.99 * (machine.host_memory_bytes - image))
    config = _config(
        spec, layouts[1], chunk,
        host_kv_memory=str(tier_bytes), policy="seesaw", reshard_from="host",
    )  # fmt: skip
    return Scenario(spec=spec, machine=machine, layouts=layouts, config=config, requests=requests)


def _config(spec: ModelSpec, decode: ParallelLayout, chunk: int, **own: Any) -> EngineConfig:
    """What all systems have alike, and what is a system's `own`."""
    return EngineConfig(
        model=spec.architecture,
        gpu_memory_utilization=UTILIZATION,
        block_size=BLOCK,
        max_num_seqs=SEQUENCES * decode.pp,
        max_num_batched_tokens=chunk,
        enable_prefix_caching=False,
        **own,
    )


Candidate = tuple[str, str, int]
"""System (`vllm`, `split`), layouts, tokens of a step."""


def every_layout(
    spec: ModelSpec, machine: Machine, requests: Sequence[Arrival]
) -> dict[Candidate, Scenario]:
    """The baseline in each layout over all devices, and this runtime in each pair."""
    count = len(machine.devices)
    runs: dict[Candidate, Scenario] = {}
    for layout in layouts_for(count, spec):
        for chunk in CHUNKS:
            runs["vllm", layout.short, chunk] = baseline(spec, machine, layout, requests, chunk)
    for pair in splits_for(count, spec):
        for chunk in PREFILL_TOKENS:
            runs["split", name_of(*pair), chunk] = split(spec, machine, pair, requests, chunk)
    return runs


def splits_for(
    num_devices: int, spec: ModelSpec
) -> Iterator[tuple[ParallelLayout, ParallelLayout]]:
    """Pairs with more stages for prompts and a wider cut for answers; the other way round brings
    both phases what does not suit them."""
    options = layouts_for(num_devices, spec)
    for prefill in options:
        for decode in options:
            if prefill.dp == decode.dp and prefill.pp > decode.pp:
                yield prefill, decode
