"""Prompts that run a group of layers a step: the same answers as `continuous`, and ranks that keep
hidden states as long as somebody goes on with them, no longer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import seesaw.engine.build
from seesaw import SamplingParams
from seesaw.engine import layered_batch
from seesaw.engine.engine import Engine
from seesaw.engine.model_runner import ModelRunner
from seesaw.engine.ranks import Ranks
from seesaw.ops.native import native
from seesaw.scheduler.output import SchedulerOutput
from tests.engine import deferred
from tests.engine.prompts import random_prompts
from tests.engine.rank_harness import RankPool, engine_on, generate

LAYERS = 5
GREEDY = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
SMALL = {"max_num_batched_tokens": 64, "max_num_seqs": 12, "max_model_len": 128}
needs_native = pytest.mark.skipif(
    native() is None, reason="rows are equal to the bit in seesaw._cpu alone"
)


class Watched:
    """Follows the steps of runners in this process by their rows alone, and compares what each
    runner keeps after every step: hidden states of just the rows that stopped between layers."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.num_parts = self.num_dropped = self.most_kept = self.num_mixed = 0
        self.sizes: set[int] = set()
        """Of groups of layers."""
        kept: dict[str, int] = {}
        begin = ModelRunner.begin

        def watched_begin(runner: ModelRunner, step: SchedulerOutput) -> object:
            begun = begin(runner, step)
            for request_id in (*step.finished, *step.preempted):
                self.num_dropped += kept.pop(request_id, 0) > 0
            rows = step.rows
            for row in rows:
                kept.pop(row.request_id, None)
                size = row.layer_stop - row.layer_start
                if size < LAYERS:
                    self.num_parts += 1
                    self.sizes.add(size)
                if row.layer_stop < LAYERS:
                    kept[row.request_id] = row.num_tokens
            self.num_mixed += len({row[3:5] for row in rows}) > 1
            self.most_kept = max(self.most_kept, sum(kept.values()))
            held = {
                request_id: len(state.hidden_TH)
                for request_id, state in runner._requests.items()
                if state.hidden_TH is not None
            }
            assert held == kept, f"step {step.step_id} keeps {held}, expected {kept}"
            return begun

        patch.setattr(ModelRunner, "begin", watched_begin)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def answers(
    model: Path, prompts: list[list[int]], policy: str = "layered-prefill",
    options: dict[str, Any] | None = None, **settings: Any,
) -> list[list[int]]:  # fmt: skip
    given = SMALL | {"policy_options": options or {}} | settings
    with engine_on(None, model, "tp1", "tp1", policy=policy, **given) as engine:
        return [one.token_ids for one in generate(engine, prompts, GREEDY)]


@needs_native
@pytest.mark.parametrize("family", ["llama", "gemma3", "mixtral", "qwen3_moe"])
def test_ids_equal_those_of_continuous_for_any_number_of_groups(
    family: str, tiny_checkpoint, watched: Watched
) -> None:
    """Gemma has norms behind its sums and sliding windows, Qwen3-MoE plain layers among sparse."""
    sizes: dict[str, Any] = {"num_hidden_layers": LAYERS}
    if family == "gemma3":
        sizes["layer_types"] = ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"]
    model, prompts = tiny_checkpoint(family, **sizes), random_prompts(20, 90)
    expected = answers(model, prompts, "continuous")
    for groups in range(1, LAYERS + 1):
        options = {"group_tokens": 1, "max_groups": groups, "wave_tokens": 40}
        assert answers(model, prompts, options=options) == expected, groups
    assert watched.num_parts > 100
    assert watched.num_mixed > 30, "prompts ran beside decodes"
    assert watched.sizes == {1, 2, 3}, "groups of every size, but all layers at once"
    assert watched.most_kept <= 40
    assert answers(model, prompts, options={"group_tokens": 16}) == expected


@needs_native
def test_ids_are_the_same_where_members_of_a_wave_yield(tiny_checkpoint, watched: Watched) -> None:
    model = tiny_checkpoint("qwen3_moe", num_hidden_layers=LAYERS)
    prompts = random_prompts(20, 60)
    expected = answers(model, prompts, "continuous")
    options = {"group_tokens": 1, "block_watermark": 0.0}
    with engine_on(
        None, model, "tp1", "tp1", policy="layered-prefill", policy_options=options, **SMALL
    ) as engine:
        plan = engine.memory_plan
    tight = str(plan.arena_bytes + plan.work_bytes + 10 * plan.block_bytes)
    given = SMALL | {"device_memory": tight, "policy_options": options}
    with engine_on(None, model, "tp1", "tp1", policy="layered-prefill", **given) as engine:
        got = [one.token_ids for one in generate(engine, prompts, GREEDY)]
        assert engine.stats.scheduler.num_preemptions > 0
    assert got == expected
    assert watched.num_dropped > 0, "nobody yielded between two layers"


@needs_native
def test_aborts_in_the_middle_of_a_wave(tiny_checkpoint, watched: Watched) -> None:
    """Of some members; the others answer as they would."""
    model, prompts = tiny_checkpoint("llama", num_hidden_layers=LAYERS), random_prompts(24, 60)
    expected = answers(model, prompts, "continuous")
    options = {"group_tokens": 1}
    aborted = set[int]()
    found: dict[int, list[int]] = {}
    with engine_on(
        None, model, "tp1", "tp1", policy="layered-prefill", policy_options=options, **SMALL
    ) as engine:
        for index, prompt in enumerate(prompts):
            engine.add_request(str(index), prompt, GREEDY)
        while engine.has_unfinished_requests():
            for output in engine.step():
                found[int(output.request_id)] = output.outputs[0].token_ids
            if len(aborted) < 6 and (between := between_layers(engine)):
                aborted.add(between[-1])
                engine.abort_request(str(between[-1]))
        engine.settle()
        assert engine.stats.kv_usage == 0
    assert len(aborted) == 6
    assert watched.num_dropped > 0, "aborts came when the wave was over"
    for index, answer in found.items():
        assert answer == expected[index] or index in aborted


def test_status_counts_a_prompt_once_whatever_the_number_of_groups(tiny_checkpoint) -> None:
    model, prompts = tiny_checkpoint("llama", num_hidden_layers=LAYERS), random_prompts(8, 60)
    given = SMALL | {"policy_options": {"group_tokens": 1}, "enable_prefix_caching": False}
    with engine_on(None, model, "tp1", "tp1", policy="layered-prefill", **given) as engine:
        generate(engine, prompts, GREEDY)
        status, scheduled = engine.status, engine.stats.scheduler.num_scheduled_tokens
    assert status.prompt_tokens == sum(map(len, prompts))
    assert status.decoded_tokens == len(prompts) * 8, "all but the first of nine tokens each"
    assert scheduled > status.prompt_tokens + status.decoded_tokens, "prompts ran in groups"


def between_layers(engine: Engine) -> list[int]:
    """Requests whose prompts have run some layers, as the scheduler has it."""
    requests = engine._replicas.schedulers[0]._residency.requests.values()
    return [int(one.request_id.partition("#")[0]) for one in requests if one.layer_cursor]


@needs_native
def test_with_one_step_begun_ahead(tiny_checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: inputs are packed, and a wave's next group begins while the last one runs."""
    model, prompts = tiny_checkpoint("mixtral", num_hidden_layers=LAYERS), random_prompts(20, 60)
    expected = answers(model, prompts, "continuous")
    monkeypatch.setattr(seesaw.engine.build, "clock_of", deferred.clock_of)
    unknown = [0]
    gather = layered_batch.gather_rows

    def watched_gather(*args: Any, **kwargs: Any) -> Any:
        rows = gather(*args, **kwargs)
        unknown[0] += rows.num_unknown
        return rows

    monkeypatch.setattr(layered_batch, "gather_rows", watched_gather)
    watched = Watched(monkeypatch)
    assert answers(model, prompts, options={"group_tokens": 1, "max_groups": 3}) == expected
    assert watched.num_mixed > 0
    assert unknown[0] > 0, "no token was taken from the device"


def test_on_plain_torch(tiny_checkpoint, plain_torch, watched: Watched) -> None:
    model = tiny_checkpoint("qwen3_moe", num_hidden_layers=LAYERS)
    prompts = random_prompts(12, 60)
    expected = answers(model, prompts, "continuous")
    got = answers(model, prompts, options={"group_tokens": 1})
    assert watched.num_mixed > 0
    assert sum(a != b for a, b in zip(got, expected, strict=True)) <= 1, "one near-tie at most"


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    ranks = RankPool()
    yield ranks
    ranks.close()


@pytest.mark.parametrize(
    ("layout", "num_ranks"), [("tp2", 2), ("pp2", 2), ("pp2+3", 2)], ids=["tp2", "pp2", "pp2+3"]
)
def test_on_two_ranks(layout: str, num_ranks: int, tiny_checkpoint, pool: RankPool) -> None:
    """Groups that lie in one stage, across the cut, or end on it."""
    model = tiny_checkpoint("qwen3_moe", num_hidden_layers=LAYERS)
    prompts = random_prompts(16, 60)
    expected = answers(model, prompts, "continuous")
    differing = 0
    for groups in (2, 3, LAYERS):
        options = {"group_tokens": 1, "max_groups": groups, "wave_tokens": 40}
        parts = [0]
        with engine_on(
            pool.of(num_ranks), model, layout, layout, policy="layered-prefill",
            policy_options=options, **SMALL,
        ) as engine:  # fmt: skip

            def count(step: SchedulerOutput, _: float, parts: list[int] = parts) -> None:
                parts[0] += sum(row.layer_start > 0 for row in step.rows)

            engine.observe_steps(count)
            got = [one.token_ids for one in generate(engine, prompts, GREEDY)]
        assert parts[0] > 10
        differing += sum(a != b for a, b in zip(got, expected, strict=True))
    assert differing <= (1 if layout == "tp2" else 0), "sums of ranks may round a near-tie"


def test_memory_for_what_is_kept_is_planned(tiny_checkpoint) -> None:
    model = tiny_checkpoint("llama", num_hidden_layers=LAYERS)
    work = []
    for policy in ("continuous", "layered-prefill"):
        with engine_on(None, model, "tp1", "tp1", policy=policy, **SMALL) as engine:
            work.append(engine.memory_plan.work_bytes)
            hidden = engine.spec.hidden_size
    assert work[1] - work[0] == SMALL["max_num_batched_tokens"] * hidden * 4


def test_a_dense_model_is_told_that_it_gains_nothing(tiny_checkpoint, caplog) -> None:
    for family, told in (("llama", 1), ("mixtral", 0)):
        caplog.clear()
        with (
            caplog.at_level(logging.WARNING, logger="seesaw"),
            engine_on(
                None, tiny_checkpoint(family), "tp1", "tp1", policy="layered-prefill", **SMALL
            ),
        ):
            pass
        found = [one for one in caplog.messages if "saves reading experts" in one]
        assert len(found) == told, family


def expert_loads(
    model: Path, prompts: list[list[int]], policy: str, options: dict[str, Any], *,
    ranks: Ranks | None = None, layout: str = "tp1",
) -> tuple[int, int, list[list[int]]]:  # fmt: skip
    """(reads of experts, steps, answers) of prompts that come while somebody decodes, one after
    another."""
    steps = [0]

    def count(*_: object) -> None:
        steps[0] += 1

    given = SMALL | {"enable_prefix_caching": False, "policy_options": options, "profile": True}
    with engine_on(ranks, model, layout, layout, policy=policy, **given) as engine:
        engine.observe_steps(count)
        decodes = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
        engine.add_request("old", prompts[0][:1], decodes)
        engine.step()
        found: dict[str, list[int]] = {}
        for index, prompt in enumerate(prompts):
            engine.add_request(str(index), prompt, GREEDY)
            while str(index) not in found:
                found |= {one.request_id: one.outputs[0].token_ids for one in engine.step()}
        engine.abort_request("old")
        while engine.has_unfinished_requests():
            engine.step()
        engine.settle()
        answered = [found[str(index)] for index in range(len(prompts))]
        return engine.stats.transfers.expert_loads, steps[0], answered


@needs_native
def test_reads_of_experts_are_counted_and_fewer_by_layers_than_by_chunks(
    tiny_checkpoint, pool: RankPool
) -> None:
    """As many steps either way: a group of layers for each chunk that there would be."""
    model = tiny_checkpoint("qwen3_moe", num_hidden_layers=LAYERS, num_experts=16)
    prompts = [(prompt + [9] * 40)[:40] for prompt in random_prompts(4, 60)]
    chunked, steps, expected = expert_loads(model, prompts, "continuous", {"max_prefill_chunk": 8})
    layered, as_many, got = expert_loads(model, prompts, "layered-prefill", {"group_tokens": 8})
    assert got == expected
    assert abs(steps - as_many) <= 4
    # All layers but one have experts, 16 each; a decode reads 3 of them.
    sparse = LAYERS - 1
    assert 3 * sparse * as_many <= layered < 0.9 * chunked
    assert chunked <= 16 * sparse * steps
    on_two, _, again = expert_loads(
        model, prompts, "layered-prefill", {"group_tokens": 8}, ranks=pool.of(2), layout="tp2"
    )
    if again == expected:  # else a near-tie was rounded the other way, and other tokens ran
        assert abs(on_two - layered) <= 4 * 6 * sparse, "each rank counts those that it has"


@needs_native
def test_reads_are_those_that_routers_ask_for(tiny_checkpoint) -> None:
    """On one prompt of one token: as many as it chooses in each sparse layer, in each step."""
    model = tiny_checkpoint("mixtral", num_hidden_layers=LAYERS)
    one = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    for policy in ("continuous", "layered-prefill"):
        for profile in (False, True):
            with engine_on(
                None, model, "tp1", "tp1", policy=policy, profile=profile, **SMALL
            ) as engine:
                generate(engine, [[7]], one)
                engine.settle()
                loads = engine.stats.transfers.expert_loads
                num_steps = engine.stats.scheduler.num_steps
            assert num_steps == 3
            assert loads == (2 * LAYERS * num_steps if profile else 0)
