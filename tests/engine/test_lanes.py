"""Two lanes of steps on one device: the answers are those of one lane, the lanes do run beside each
other, and each computes on cores of its own."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from seesaw.api.llm import LLM
from seesaw.engine.executor import InProcessExecutor
from seesaw.engine.lanes import CoreShare, lane_threads
from seesaw.errors import ConfigError, EngineDeadError
from seesaw.ops.native import native
from seesaw.sampling_params import SamplingParams
from seesaw.scheduler.output import Batch, SchedulerOutput
from seesaw.trace import read_trace
from tests.checkpoints import VOCAB_SIZE
from tests.engine.test_executor import FAILING, FakeRunner

BASE: dict[str, Any] = {
    "dtype": "float32", "device": "cpu", "device_memory": "256MiB", "block_size": 16,
    "max_model_len": 256, "cpu_threads": 2,
}  # fmt: skip
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
NEXUS: dict[str, Any] = {"policy": "nexus", "max_num_batched_tokens": 64}


def prompts_of(count: int, longest: int) -> list[list[int]]:
    """Of random lengths, half of them with a common beginning."""
    seed = random.randrange(2**31)
    print(f"prompts of seed {seed}")
    rng = random.Random(seed)
    common = [rng.randrange(4, VOCAB_SIZE) for _ in range(longest // 2)]
    return [
        common * rng.randint(0, 1)
        + [rng.randrange(4, VOCAB_SIZE) for _ in range(rng.randint(1, longest // 2))]
        for _ in range(count)
    ]


def answers(model: Path, prompts: list[list[int]], sampling: Any = GREEDY, **settings: Any) -> Any:
    """(token ids, counts of its steps)."""
    with LLM(str(model), **(BASE | settings)) as llm:
        llm.engine.count_steps()
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        llm.engine.settle()
        counts = llm.engine.stats.counts
    return [output.outputs[0].token_ids for output in outputs], counts


@pytest.fixture
def checked_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step checks the block accounting, and freed blocks are filled with NaN."""
    monkeypatch.setenv("SEESAW_DEBUG_BLOCKS", "1")


@pytest.mark.usefixtures("checked_blocks")
@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma3"])
def test_answers_are_those_of_one_lane(family: str, tiny_checkpoint: Callable[..., Path]) -> None:
    """Whatever the share, the budget and the order of prompts; where blocks run out, too."""
    model, prompts = tiny_checkpoint(family), prompts_of(24, 100)
    expected, _ = answers(model, prompts)
    for settings in (
        {"policy_options": {"prefill_share": 0.5}},
        {"policy_options": {"prefill_tokens": 7, "age_weight": 0.0}, "max_num_seqs": 5},
        {"policy_options": {"kv_switch": 0.0}, "enable_prefix_caching": False},
    ):
        got, counts = answers(model, prompts, **NEXUS, **settings)
        assert got == expected, settings
        assert counts.num_share_changes > 0
        assert counts.num_prompt_steps > 0
        assert counts.num_decode_steps > 0


def test_answers_are_the_same_where_requests_yield(tiny_checkpoint: Callable[..., Path]) -> None:
    model, prompts = tiny_checkpoint("llama"), [prompt[:60] for prompt in prompts_of(12, 400)]
    expected, _ = answers(model, prompts)
    options = {"policy_options": {"block_watermark": 0.0, "prefill_share": 0.5}}
    with LLM(str(model), **(BASE | NEXUS | options)) as llm:
        (scheduler,) = llm.engine._replicas.schedulers
        # As if there were no more blocks than the longest requests need.
        pool = scheduler._residency.pools["decode"]
        held = pool.allocate(pool.num_free - 20)
        outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
        assert scheduler.stats.num_preemptions > 0
        pool.release(held)
    assert [output.outputs[0].token_ids for output in outputs] == expected


def test_sampled_answers_and_penalties_are_the_same(tiny_checkpoint: Callable[..., Path]) -> None:
    model, prompts = tiny_checkpoint("qwen3"), prompts_of(8, 60)
    sampling = [
        SamplingParams(
            temperature=0.8, seed=at, max_tokens=12, ignore_eos=True,
            repetition_penalty=1.0 + 0.2 * (at % 2), logprobs=at % 3 or None,
        )
        for at in range(len(prompts))
    ]  # fmt: skip
    expected, _ = answers(model, prompts, sampling)
    got, _ = answers(model, prompts, sampling, **NEXUS)
    assert got == expected


@pytest.mark.usefixtures("plain_torch")
def test_lanes_run_without_kernels(tiny_checkpoint: Callable[..., Path]) -> None:
    model, prompts = tiny_checkpoint("qwen3_moe"), prompts_of(6, 60)
    before = torch.get_num_threads()
    expected, _ = answers(model, prompts)
    assert answers(model, prompts, **NEXUS)[0] == expected
    assert torch.get_num_threads() == before


def test_lanes_run_beside_each_other_and_a_trace_shows_it(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    model = tiny_checkpoint("llama", num_hidden_layers=8, hidden_size=128, intermediate_size=512)
    prompts = prompts_of(40, 200)
    path = tmp_path / "trace.json"
    _, counts = answers(model, prompts, **NEXUS, max_num_seqs=16, trace=path)
    trace = read_trace(path)
    lanes = {
        lane: [span for span in trace.spans if span.lane == lane]
        for lane in ("compute", "compute 2")
    }
    assert sum(map(len, lanes.values())) == counts.num_steps
    for spans in lanes.values():
        spans.sort(key=lambda span: span.start_s)
        assert spans
        for one, other in itertools.pairwise(spans):
            assert one.end_s <= other.start_s, "a lane runs one step at a time"
    beside = sum(
        one.start_s < other.end_s and other.start_s < one.end_s
        for one in lanes["compute"]
        for other in lanes["compute 2"]
    )
    assert beside > 0, "no step of one lane ran beside one of the other"


def test_an_abort_in_either_lane_harms_nobody(tiny_checkpoint: Callable[..., Path]) -> None:
    model, prompts = tiny_checkpoint("llama"), prompts_of(12, 100)
    expected, _ = answers(model, prompts)
    rng = random.Random(len(prompts[0]))
    with LLM(str(model), **(BASE | NEXUS)) as llm:
        engine, done = llm.engine, {}
        for at, prompt in enumerate(prompts):
            engine.add_request(str(at), prompt, GREEDY)
        while engine.has_unfinished_requests():
            for output in engine.step():
                done[int(output.request_id)] = output.outputs[0]
            if rng.random() < 0.2:
                engine.abort_request(str(rng.randrange(0, len(prompts), 2)))
        engine.settle()
        assert engine.status.device_share == 0
    for at, answer in done.items():
        whole = answer.finish_reason != "abort"
        assert whole or at % 2 == 0
        assert answer.token_ids == expected[at][: len(answer.token_ids)]
        assert not whole or len(answer.token_ids) == GREEDY.max_tokens


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"tensor_parallel_size": 2}, "one device of a replica"),
        ({"data_parallel_size": 2}, "one device of this process"),
        ({"cpu_threads": 1}, "a single part"),
    ],
)
def test_layouts_and_devices_without_room_for_lanes_are_refused(
    settings: dict[str, Any], told: str, tiny_checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(ConfigError, match=told):
        LLM(str(tiny_checkpoint("llama")), **(BASE | NEXUS | settings))


def test_memory_for_both_lanes_to_compute_in_is_planned(
    tiny_checkpoint: Callable[..., Path],
) -> None:
    model, work = tiny_checkpoint("llama"), []
    for policy in ("continuous", "nexus"):
        with LLM(str(model), **(BASE | NEXUS | {"policy": policy})) as llm:
            work.append(llm.engine.memory_plan.work_bytes)
    assert work[1] == 2 * work[0]


# -- cores ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_threads", [2, 3, 7, 16, 48])
def test_shares_that_fill_the_device_fill_its_threads(num_threads: int) -> None:
    units = min(num_threads, 16)
    for own in range(1, units):
        first = lane_threads(0, own / units, num_threads)
        second = lane_threads(1, (units - own) / units, num_threads)
        assert first >= 1 <= second
        assert first + second == num_threads
    assert lane_threads(0, 1.0, num_threads) == lane_threads(1, 1.0, num_threads) == num_threads


@pytest.mark.skipif(native() is None, reason="seesaw._cpu is not built")
def test_each_lane_computes_on_threads_of_its_own() -> None:
    module = native()
    assert module is not None
    before = module.num_threads()
    setup: Any = SimpleNamespace(num_threads=3, weights="panels", cores=None, pinned=False)
    found: dict[int, list[int]] = {0: [], 1: []}

    def run(lane: int) -> None:
        cores = CoreShare(lane, setup)
        for share in (1.0, 1 / 3, 2 / 3, 2 / 3):
            cores.take(share)
            found[lane].append(module.num_threads())

    threads = [threading.Thread(target=run, args=(lane,)) for lane in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: [3, 1, 2, 2], 1: [3, 1, 2, 2]}
    assert module.num_threads() == before, "those of the process are as they were"


@pytest.mark.skipif(native() is None, reason="seesaw._cpu is not built")
def test_lanes_take_cores_from_either_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where threads stay on cores, so that shares that fill the device have none in common."""
    taken: list[tuple[int, int, list[int]]] = []
    monkeypatch.setattr(
        native(), "configure_lane_threads", lambda *configured: taken.append(configured)
    )
    setup: Any = SimpleNamespace(num_threads=4, weights="panels", cores=[3, 5, 6, 9], pinned=True)
    for lane, share in ((0, 0.25), (1, 0.75), (1, 1.0)):
        CoreShare(lane, setup).take(share)
    assert taken == [(0, 1, [3]), (1, 3, [9, 6, 5]), (1, 4, [9, 6, 5, 3])]


# -- the executor ---------------------------------------------------------------------------------


class LaneRunner(FakeRunner):
    def __init__(self) -> None:
        super().__init__()
        self.taken_in: list[int] = []

    def take_in(self, step: SchedulerOutput) -> None:
        self.taken_in.append(step.step_id)


def step_of(step_id: int, lane: int) -> SchedulerOutput:
    return SchedulerOutput(step_id, lane=lane, batches=[Batch([])])


def test_a_lane_does_not_wait_for_the_other() -> None:
    first, second = LaneRunner(), LaneRunner()
    second.go.set()
    executor = InProcessExecutor(lambda report, go_on: first, lambda one, report: second)
    for number, lane in enumerate((0, 1, 0, 1, 1)):
        executor.submit(step_of(number, lane))
    done = [executor.collect()[1] for _ in range(3)]
    assert [one.step_id for one in done] == [1, 3, 4]  # type: ignore[union-attr]
    assert first.taken_in == [0, 1, 2, 3, 4], "what steps say is taken in in their order"
    first.go.set()
    assert [executor.collect()[1].step_id for _ in range(2)] == [0, 2]  # type: ignore[union-attr]
    executor.shutdown()
    assert first.closed
    assert second.closed


@pytest.mark.parametrize("lane", [0, 1])
def test_a_failure_in_either_lane_is_told(lane: int) -> None:
    runners = [LaneRunner(), LaneRunner()]
    for runner in runners:
        runner.go.set()
    executor = InProcessExecutor(lambda report, go_on: runners[0], lambda one, report: runners[1])
    executor.submit(step_of(FAILING, lane))
    for _ in range(2):
        with pytest.raises(EngineDeadError, match="ZeroDivisionError"):
            executor.collect()
    executor.submit(step_of(FAILING + 1, 1 - lane))  # nobody hears of it, and nothing breaks
    executor.shutdown()
    assert all(runner.closed for runner in runners)


def test_what_making_the_second_lane_raises_is_raised_here() -> None:
    def failing(first: Any, report: Any) -> Any:
        raise ZeroDivisionError("a test's doing")

    before, first = threading.active_count(), LaneRunner()
    with pytest.raises(ZeroDivisionError, match="a test's doing"):
        InProcessExecutor(lambda report, go_on: first, failing)
    assert threading.active_count() == before
    assert first.closed
