"""Engines on several ranks for tests: processes that are started once per count, all pairs of
layouts, forced changes of layout, and what a fresh load would hash to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from seesaw.config import EngineConfig
from seesaw.engine.engine import Engine
from seesaw.engine.rank_executor import RankExecutor
from seesaw.engine.ranks import Ranks
from seesaw.layout import ParallelLayout, PlainFormat, layouts_for, rank_ranges
from seesaw.sampling_params import SamplingParams
from seesaw.scheduler import policies
from seesaw.scheduler.output import Phase, SchedulerOutput
from seesaw.weights.checkpoint import Checkpoint
from seesaw.weights.hashes import param_hashes
from tests.models.panels import panel_params

BASE: dict[str, Any] = {
    "dtype": "float32", "device": "cpu", "device_memory": "256MiB", "block_size": 16,
    "host_kv_memory": "64MiB", "tier_block_size": 32, "max_model_len": 256,
}  # fmt: skip


def pairs_of(num_ranks: int, spec: Any) -> list[tuple[ParallelLayout, ParallelLayout]]:
    """All pairs over that many ranks with as many replicas."""
    layouts = layouts_for(num_ranks, spec)
    return [(a, b) for a in layouts for b in layouts if a.dp == b.dp]


class RankPool:
    """Worker processes by count, each started at first use and set up again for each engine."""

    def __init__(self) -> None:
        self._ranks: dict[int, Ranks] = {}

    def of(self, num_ranks: int) -> Ranks:
        for count in [count for count in self._ranks if count != num_ranks]:
            self._ranks.pop(count).close()
        if num_ranks not in self._ranks:
            self._ranks[num_ranks] = Ranks(num_ranks)
        return self._ranks[num_ranks]

    def close(self) -> None:
        for ranks in self._ranks.values():
            ranks.close()


@contextmanager
def engine_on(
    ranks: Ranks | None, model: Path, prefill: object, decode: object, **settings: Any
) -> Iterator[Engine]:
    given = BASE | {"policy": "seesaw"} | settings
    if not policies.uses_tier(given["policy"]):
        del given["host_kv_memory"]
    config = EngineConfig(
        model=str(model), prefill_layout=str(prefill), decode_layout=str(decode), **given
    )
    with Engine(config, ranks=ranks) as engine:
        yield engine


def generate(engine: Engine, prompts: list[list[int]], sampling: SamplingParams) -> list[Any]:
    """Completions in the order of the prompts."""
    for index, prompt in enumerate(prompts):
        engine.add_request(str(index), prompt, sampling)
    found: dict[int, Any] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            found[int(output.request_id)] = output.outputs[0]
    return [found[index] for index in range(len(prompts))]


def executor_of(engine: Engine) -> RankExecutor:
    executor = engine._replicas._executor
    assert isinstance(executor, RankExecutor), "the engine runs in this process"
    return executor


class Walker:
    """Forces changes of layout on an idle engine's ranks, whatever its policy would do."""

    def __init__(self, engine: Engine) -> None:
        self.executor = executor_of(engine)
        schedulers = engine._replicas.schedulers
        phases = {scheduler.phase for scheduler in schedulers}
        assert len(phases) == 1, "replicas stand in different phases"
        self._phase: Phase = phases.pop()
        self._next = [scheduler.stats.num_steps for scheduler in schedulers]

    def change(self) -> Phase:
        """All replicas to the other phase, which is returned."""
        phase: Phase = "decode" if self._phase == "prefill" else "prefill"
        for replica, step_id in enumerate(self._next):
            self.executor.submit(SchedulerOutput(step_id, phase, reshard=True), replica)
            self._next[replica] += 1
        for _ in self._next:
            self.executor.collect()
        self._phase = phase
        return phase


def fresh_hashes(
    checkpoint: Checkpoint, layout: ParallelLayout, dtype: torch.dtype, *, panels: bool
) -> list[dict[str, str]]:
    """What each rank's parameters hash to if they are cut from a plain load of the whole model,
    and put into panels then."""
    spec, replica = checkpoint.spec, layout.replica
    fmt = PlainFormat(spec, dtype.itemsize)
    whole = checkpoint.load_params(dtype, torch.device("cpu"))
    found = []
    for rank in range(replica.num_ranks):
        ranges = rank_ranges(replica, spec, rank)
        params: dict[str, torch.Tensor] = {}
        for param in fmt.params:
            if not fmt.holds(param, ranges):
                continue
            data = whole[param.name].contiguous().view(-1).view(torch.uint8)
            runs = [data[run.start : run.start + run.size] for run in fmt.runs(param, ranges)]
            shape = fmt.local_shape(param, ranges)
            params[param.name] = torch.cat(runs).view(dtype).view(shape)
        if panels:
            params = panel_params(spec, params)
        if spec.tie_word_embeddings and "model.embed_tokens.weight" in params:
            params["lm_head.weight"] = params["model.embed_tokens.weight"]
        found.append(param_hashes(params))
    return found * layout.dp
