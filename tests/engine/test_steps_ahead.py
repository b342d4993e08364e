"""A step is begun while the one before it runs; what is answered is the same, and so is the order
of reports and errors."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import seesaw.engine.build
from seesaw import SamplingParams
from seesaw.engine import layered_batch
from seesaw.engine.messages import StepReport
from seesaw.engine.model_runner import ModelRunner
from seesaw.engine.ranks import Ranks
from seesaw.engine.steps_ahead import StepsAhead
from seesaw.ops.native import native
from seesaw.scheduler.output import SchedulerOutput
from tests.checkpoints import VOCAB_SIZE
from tests.engine import deferred
from tests.engine.rank_harness import engine_on, generate


class ScriptedRunner:
    """Steps are done when `done` has their id; each act is noted."""

    def __init__(self, steps_ahead: int) -> None:
        self.steps_ahead = steps_ahead
        self.done: set[int] = set()
        self.failing: set[str] = set()
        self.waits_for_all: set[int] = set()
        self.acts: list[str] = []

    def needs_results(self, step: SchedulerOutput) -> bool:
        return step.step_id in self.waits_for_all

    def begin(self, step: SchedulerOutput) -> ScriptedStep:
        self.act(f"begin {step.step_id}")
        return ScriptedStep(self, step.step_id)

    def act(self, what: str) -> None:
        self.acts.append(what)
        if what in self.failing:
            raise ZeroDivisionError(what)


class ScriptedStep:
    def __init__(self, runner: ScriptedRunner, step_id: int) -> None:
        self._runner, self._step_id = runner, step_id

    def is_done(self) -> bool:
        return self._step_id in self._runner.done

    def finish(self) -> StepReport:
        self._runner.act(f"finish {self._step_id}")
        return StepReport(rank=0, step_id=self._step_id)


def scripted(steps_ahead: int = 1) -> tuple[ScriptedRunner, StepsAhead]:
    runner = ScriptedRunner(steps_ahead)
    return runner, StepsAhead(runner, lambda report: runner.acts.append(f"report {report.step_id}"))


def test_one_step_is_begun_ahead_and_no_more() -> None:
    runner, ahead = scripted()
    for step_id in range(3):
        ahead.begin(SchedulerOutput(step_id))
    assert runner.acts == ["begin 0", "begin 1", "finish 0", "report 0", "begin 2"]
    ahead.settle()
    assert runner.acts[5:] == ["finish 1", "report 1", "finish 2", "report 2"]


def test_on_a_host_each_step_is_reported_before_the_next() -> None:
    runner, ahead = scripted(steps_ahead=0)
    runner.done = {0, 1}
    for step_id in range(2):
        ahead.begin(SchedulerOutput(step_id))
    assert runner.acts == [
        f"{act} {step_id}" for step_id in range(2) for act in ("begin", "finish", "report")
    ]


def test_a_step_that_needs_results_waits_for_all_before_it() -> None:
    runner, ahead = scripted()
    runner.waits_for_all = {1}
    for step_id in range(2):
        ahead.begin(SchedulerOutput(step_id))
    assert runner.acts == ["begin 0", "finish 0", "report 0", "begin 1"]


def test_what_is_done_is_reported_while_no_step_comes() -> None:
    runner, ahead = scripted()
    ahead.begin(SchedulerOutput(0))
    asked = Counter[str]()

    def arrived() -> bool:
        asked["times"] += 1
        if asked["times"] == 3:
            runner.done.add(0)
        return asked["times"] > 10

    ahead.work_until(arrived)
    assert runner.acts[-1] == "report 0"
    assert asked["times"] == 3, "nothing is left to wait for"
    ahead.begin(SchedulerOutput(1))
    ahead.work_until(lambda: True)
    assert runner.acts[-1] == "begin 1", "a step that came is begun first"


def test_a_step_that_cannot_be_begun_fails_after_the_reports_before_it() -> None:
    runner, ahead = scripted()
    runner.failing = {"begin 1"}
    ahead.begin(SchedulerOutput(0))
    with pytest.raises(ZeroDivisionError, match="begin 1"):
        ahead.begin(SchedulerOutput(1))
    assert runner.acts[-1] == "report 0"
    assert ahead.doing == "decode step 1"


def test_a_failure_on_the_device_is_told_of_the_step_that_failed() -> None:
    runner, ahead = scripted()
    runner.failing = {"finish 0"}
    for step_id in range(2):
        ahead.begin(SchedulerOutput(step_id))
    with pytest.raises(ZeroDivisionError, match="finish 0"):
        ahead.settle()
    assert ahead.doing == "decode step 0"


# -- whole engines ---------------------------------------------------------------------------------

GREEDY = SamplingParams(temperature=0, max_tokens=14, ignore_eos=True)


class Watched:
    """What happened in the runners of this process."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.unknown = self.waits = 0
        gather, needs_results = layered_batch.gather_rows, ModelRunner.needs_results

        def watched_gather(*args, **kwargs):
            rows = gather(*args, **kwargs)
            self.unknown += rows.num_unknown
            return rows

        def watched_needs(runner, step):
            needed = needs_results(runner, step)
            self.waits += needed
            return needed

        patch.setattr(layered_batch, "gather_rows", watched_gather)
        patch.setattr(ModelRunner, "needs_results", watched_needs)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Steps are deferred in this process from here on."""
    monkeypatch.setattr(seesaw.engine.build, "clock_of", deferred.clock_of)
    return Watched(monkeypatch)


def random_prompts(count: int, longest: int, shortest: int = 1) -> list[list[int]]:
    seed = random.randrange(2**31)
    print(f"random_prompts(seed={seed})")
    rng = random.Random(seed)
    lengths = [shortest, longest, *(rng.randrange(shortest, longest) for _ in range(count - 2))]
    return [[rng.randrange(4, VOCAB_SIZE) for _ in range(length)] for length in lengths]


MIXED = [
    GREEDY,
    SamplingParams(temperature=0.9, seed=5, max_tokens=12),
    SamplingParams(temperature=0, max_tokens=4, frequency_penalty=0.7, presence_penalty=0.4),
    SamplingParams(temperature=0.8, seed=1, max_tokens=4, repetition_penalty=1.3, logprobs=3),
    SamplingParams(temperature=0, max_tokens=12, min_tokens=6, logprobs=2),
    SamplingParams(temperature=1.0, top_p=0.9, top_k=20, seed=2, max_tokens=9, stop=["e", "1"]),
]


def run_mixed(model: Path, prompts: list[list[int]], **settings: object) -> list[object]:
    """Requests of all kinds at once, some of which are aborted on the way: what is told of each."""
    found: dict[int, object] = {}
    with engine_on(None, model, "tp1", "tp1", policy="continuous", **settings) as engine:
        for index, prompt in enumerate(prompts):
            engine.add_request(str(index), prompt, MIXED[index % len(MIXED)])
        steps = 0
        while engine.has_unfinished_requests():
            for output in engine.step():
                (one,) = output.outputs
                found[int(output.request_id)] = (one.token_ids, one.finish_reason, one.logprobs)
            steps += 1
            if steps == 4:
                engine.abort_request("0")
    del found[0]  # how far it came depends on who was faster
    return [found[index] for index in sorted(found)]


@pytest.mark.skipif(native() is None, reason="rows are equal to the bit in seesaw._cpu alone")
def test_requests_of_all_kinds_answer_the_same(tiny_checkpoint, monkeypatch) -> None:
    model, prompts = tiny_checkpoint("llama"), random_prompts(24, 50)
    expected = run_mixed(model, prompts)
    monkeypatch.setattr(seesaw.engine.build, "clock_of", deferred.clock_of)
    watched = Watched(monkeypatch)
    assert run_mixed(model, prompts) == expected
    assert watched.unknown > 10, "tokens were taken from the device"
    assert watched.waits > 0, "penalties waited for tokens"


@pytest.mark.skipif(native() is None, reason="rows are equal to the bit in seesaw._cpu alone")
@pytest.mark.parametrize(
    "settings",
    [
        {"device_memory": "tight", "max_model_len": 96, "max_num_seqs": 12},
        {"policy_options": {"max_prefill_chunk": 5}, "block_size": 4, "max_num_seqs": 5},
    ],
    ids=["preempted", "chunks"],
)
def test_greedy_answers_are_the_same_whoever_yields(
    settings, tiny_checkpoint, watched, monkeypatch
) -> None:
    model, prompts = tiny_checkpoint("mistral"), random_prompts(16, 70)
    with monkeypatch.context() as now:
        now.setattr(seesaw.engine.build, "clock_of", seesaw.engine.device_clock.clock_of)
        with engine_on(None, model, "tp1", "tp1", policy="continuous", **BUDGETED) as engine:
            expected = [one.token_ids for one in generate(engine, prompts, GREEDY)]
            plan = engine.memory_plan
    preempts = settings.get("device_memory") == "tight"
    if preempts:
        budget = plan.arena_bytes + plan.work_bytes + 18 * plan.block_bytes
        settings = settings | {"device_memory": str(budget)}
    with engine_on(None, model, "tp1", "tp1", policy="continuous", **settings) as engine:
        got = [one.token_ids for one in generate(engine, prompts, GREEDY)]
        assert (engine.stats.scheduler.num_preemptions > 0) == preempts
    assert got == expected
    assert watched.unknown > 0


BUDGETED = {"max_model_len": 96, "max_num_seqs": 12}


def test_plain_torch_answers_the_same(tiny_checkpoint, plain_torch, watched) -> None:
    model, prompts = tiny_checkpoint("qwen3"), random_prompts(6, 40)
    with engine_on(None, model, "tp1", "tp1", policy="continuous") as engine:
        got = [one.token_ids for one in generate(engine, prompts, GREEDY)]
        alone = []
        for prompt in prompts:
            (one,) = generate(engine, [prompt], GREEDY)
            alone.append(one.token_ids)
    assert sum(a != b for a, b in zip(got, alone, strict=True)) <= 1, "one near-tie at most"
    assert watched.unknown > 0


@pytest.fixture(scope="module")
def deferred_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Two worker processes whose steps are deferred."""
    folder = tmp_path_factory.mktemp("deferred")
    (folder / "sitecustomize.py").write_text(
        f"from tests.engine import deferred\ndeferred.install({str(folder)!r})\n"
    )
    root = Path(__file__).parents[2]
    ranks = Ranks(2, environment={"PYTHONPATH": f"{folder}:{root}"})
    yield ranks
    ranks.close()
    assert len(list(folder.glob("*.deferred"))) == 2, "a process whose steps were not deferred"


@pytest.mark.skipif(native() is None, reason="rows are equal to the bit in seesaw._cpu alone")
@pytest.mark.parametrize(
    ("prefill", "decode", "policy"),
    [("tp2", "tp2", "continuous"), ("pp2", "tp2", "seesaw"), ("tp2", "pp2", "seesaw")],
)
def test_layouts_answer_the_same(
    prefill, decode, policy, tiny_checkpoint, deferred_ranks, monkeypatch
) -> None:
    model, prompts = tiny_checkpoint("llama"), random_prompts(12, 60, 34)
    with engine_on(None, model, "tp1", "tp1", policy="continuous") as engine:
        expected = [one.token_ids for one in generate(engine, prompts, GREEDY)]
    settings = (
        {}
        if policy == "continuous"
        else {"host_kv_memory": "256KiB", "max_model_len": 96, "max_num_seqs": 4}
    )
    with engine_on(deferred_ranks, model, prefill, decode, policy=policy, **settings) as engine:
        got = [one.token_ids for one in generate(engine, prompts, GREEDY)]
        if policy == "seesaw":
            assert engine.stats.scheduler.num_transitions > 0
    assert sum(a != b for a, b in zip(got, expected, strict=True)) <= 1, "one near-tie at most"
