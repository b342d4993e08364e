"""Plays a scenario: callers come, abort and leave, ranks die, a new engine goes on with what the
last one did not answer; and says what must hold.

Every answer is the right one; every request is answered once; nobody waits for what never comes; a
death is named with its rank and what that was at; at the end no block is held, nothing is in
flight, and bytes and steps are as many as were ordered.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

from seesaw.engine.engine import Engine
from seesaw.engine.rank_executor import RankExecutor
from seesaw.errors import EngineDeadError, RequestError
from seesaw.outputs import RequestOutput
from seesaw.sampling_params import SamplingParams
from tests.fuzz.answers import check_answer, expected
from tests.fuzz.clock import Clock
from tests.fuzz.fake_ranks import FakeRanks
from tests.fuzz.harness import dumps_kept, make_engine
from tests.fuzz.scenario import Asked, Fault, Scenario, random_scenario
from tests.scheduler.rules import most_transitions

COUNTED = {
    "kv_store_bytes": "Store",
    "kv_load_bytes": "Load",
    "kv_relay_bytes": "Relay",
    "kv_peer_bytes": "from peers",
}
"""What the engine calls bytes of each kind, which it counts and predicts."""

MOST_IDLE = 3
"""Calls of `step` in a row in which nothing comes back."""


def play_seed(seed: int) -> Play:
    """Raises with the scenario and the last events where something is wrong."""
    play = Play(random_scenario(seed))
    play.play()
    return play


class Play:
    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.clock = Clock()
        self.seen: Counter[str] = Counter()
        """How often something was met, so that tests can ask for it."""
        self._rng = random.Random(f"{scenario.seed}/play")
        self._asked = {asked.request_id: asked for asked in scenario.requests}
        self._coming = len(scenario.requests)
        self._open: dict[str, Asked] = {}
        """Came and is not answered."""
        self._answered: Counter[str] = Counter()
        self._aborted: set[str] = set()
        self._wanted: dict[tuple[str, int], list[int]] = {}
        self._grown: dict[tuple[str, int], int] = {}
        self._engine: Engine | None = None
        self._ranks: FakeRanks | None = None
        self._faults = list(scenario.faults)
        self._lives = 0
        self._dumps: list[str] = []

    def play(self) -> None:
        try:
            for asked in self.scenario.requests:
                self._plan(asked)
            with dumps_kept(self._dumps):
                while self._coming or self._open or not self._lives:
                    self._live()
            twice = {one: count for one, count in self._answered.items() if count != 1}
            assert not twice, f"answered more than once: {twice}"
            unanswered = self._asked.keys() - self._answered.keys() - self._aborted
            assert not unanswered, f"never answered: {unanswered}"
        except Exception as error:
            self._explain(error)
            raise

    def _explain(self, error: Exception) -> None:
        notes = "\n".join(self.clock.notes)
        error.add_note(
            f"{self.scenario.describe()}\nlast events:\n{notes}\n"
            f"play again: python -m tests.fuzz --seed {self.scenario.seed}"
        )

    # -- callers ----------------------------------------------------------------------------------

    def _plan(self, asked: Asked) -> None:
        def arrive() -> None:
            self._coming -= 1
            self._open[asked.request_id] = asked
            if self._engine is not None:
                self._add(self._engine, asked)

        def abort() -> None:
            self._abort(asked.request_id)

        self.clock.at(asked.arrival_s, arrive)
        if asked.abort_s is not None:
            self.clock.at(asked.arrival_s + asked.abort_s, abort)

    def _add(self, engine: Engine, asked: Asked) -> None:
        """Also in the middle of a step, as another thread would."""
        self.clock.note(f"{asked.request_id} comes")
        if self._rng.random() < 0.1:
            self._refused(engine, asked)
        engine.add_request(asked.request_id, asked.prompt, asked.sampling, stream=asked.stream)

    def _refused(self, engine: Engine, asked: Asked) -> None:
        """One that can never be served leaves no trace."""
        longest = self.scenario.config.max_model_len
        with contextlib.suppress(RequestError):
            engine.add_request(asked.request_id, [1] * longest, SamplingParams(max_tokens=1))
            raise AssertionError("a prompt that is too long was taken")

    def _abort(self, request_id: str) -> None:
        if request_id not in self._open or self._engine is None:
            return
        self.clock.note(f"{request_id} is aborted")
        self.seen["aborts"] += 1
        self._aborted.add(request_id)
        self._engine.abort_request(request_id)

    # -- engines ----------------------------------------------------------------------------------

    def _live(self) -> None:
        """One engine, from its start to its end."""
        self._lives += 1
        assert self._lives <= len(self.scenario.faults) + 2, "engines die without a cause"
        fault = self._faults.pop(0) if self._faults else None
        ranks = self._ranks
        if ranks is None or ranks.was_killed is not None:
            ranks = FakeRanks(self.scenario, self.clock, fault, self._lives)
        else:
            ranks.fault = fault
        self._ranks = ranks
        self._grown.clear()
        for request_id in self._aborted & self._open.keys():
            del self._open[request_id]  # its caller does not ask again
        try:
            engine = make_engine(self.scenario, ranks)
        except EngineDeadError as error:
            self._check_death(error, ranks)
            return
        self._engine = engine
        try:
            for asked in list(self._open.values()):
                self._add(engine, asked)
            self._serve(engine, ranks, fault)
        except EngineDeadError as error:
            self._engine = None
            self._check_death(error, ranks)
            self._check_dead(engine, error)
            return
        finally:
            self._engine = None

    def _serve(self, engine: Engine, ranks: FakeRanks, fault: Fault | None) -> None:
        """Until all is answered, or the caller leaves."""
        idle = 0
        while self._coming or self._open:
            if not engine.has_unfinished_requests():
                assert not self._open.keys(), f"{self._open.keys()} are forgotten by the engine"
                assert self.clock.advance(), f"requests {self._open.keys()} never come"
                continue
            heard = ranks.num_heard
            outputs = engine.step()
            self._take(outputs)
            # An answer of no tokens needs no rank.
            idle = 0 if outputs or ranks.num_heard > heard else idle + 1
            assert idle < MOST_IDLE, f"steps that wait for nothing: {ranks.describe()}"
            if fault is not None and fault.kind == "left" and ranks.num_steps > (fault.after_steps):
                self.seen["left"] += 1
                self._engine = None  # who comes while it ends asks the next one
                engine.shutdown()
                self._check_left(ranks)
                return
        self._finish(engine, ranks)

    def _take(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            asked = self._open.get(output.request_id)
            assert asked is not None, f"{output.request_id} is answered and was not asked"
            assert output.prompt_token_ids == list(asked.prompt)
            assert [one.index for one in output.outputs] == list(range(asked.sampling.n))
            if output.finished:
                self._end(asked, output)
            else:
                self._grow(asked, output)

    def _end(self, asked: Asked, output: RequestOutput) -> None:
        del self._open[asked.request_id]
        self._answered[asked.request_id] += 1
        self.clock.note(f"{asked.request_id} is answered")
        for one in output.outputs:
            if one.finish_reason == "abort":
                assert asked.request_id in self._aborted, f"{asked.request_id} was not aborted"
            self.seen[f"ends by {one.finish_reason}"] += 1
            check_answer(self.scenario, asked, one)

    def _grow(self, asked: Asked, output: RequestOutput) -> None:
        assert asked.stream, f"{asked.request_id} is shown before its end"
        for one in output.outputs:
            key = asked.request_id, one.index
            if key not in self._wanted:
                self._wanted[key] = expected(self.scenario, asked, one.index)[0]
            want = self._wanted[key]
            assert one.token_ids == want[: len(one.token_ids)], f"{key}: {one} grows, not {want}"
            assert len(one.token_ids) >= self._grown.get(key, 0), f"{key} took tokens back"
            self._grown[key] = len(one.token_ids)
            count = asked.abort_after_tokens
            is_due = count is not None and len(one.token_ids) >= count
            if is_due and asked.request_id not in self._aborted:
                self._abort(asked.request_id)

    # -- ends -------------------------------------------------------------------------------------

    def _finish(self, engine: Engine, ranks: FakeRanks) -> None:
        """All is answered: nothing may be left."""
        if self.scenario.settles:
            engine.settle()
            assert ranks.is_idle(), f"not settled: {ranks.describe()}"
            self._check_settled(engine, ranks)
        engine.shutdown()
        self._check_left(ranks)
        with raises(EngineDeadError):
            engine.step()

    def _check_settled(self, engine: Engine, ranks: FakeRanks) -> None:
        stats, moved = engine.stats, engine.stats.transfers
        assert (stats.num_running, stats.num_waiting, stats.kv_usage) == (0, 0, 0)
        for scheduler in engine._replicas.schedulers:
            scheduler.check()
            assert scheduler.prefill_kv_usage == scheduler.num_tier_blocks_used == 0
            assert scheduler.num_in_flight == scheduler.num_transfers == 0
        for merger in executor_of(engine)._mergers:
            assert not {**merger._steps, **merger._transfers}, "reports that nobody waits for"
        assert stats.scheduler.num_steps == ranks.num_steps
        copied = sum((model.moved for model in ranks.replicas), Counter())
        for name, kind in COUNTED.items():
            found = getattr(moved, name), getattr(moved.predicted, name)
            assert found == (copied[kind], copied[kind]), f"{name}: {found}, {copied[kind]} moved"
        assert moved.weight_bytes_moved == moved.predicted.weight_bytes_moved
        assert not any(model.num_open for model in ranks.replicas)
        self._check_transitions(engine, ranks)
        self.seen["transitions"] += stats.scheduler.num_transitions
        self.seen["stores"] += stats.scheduler.num_stored
        self.seen["loads"] += stats.scheduler.num_loaded
        self.seen["relays"] += stats.scheduler.num_relayed
        self.seen["preemptions"] += stats.scheduler.num_preemptions
        self.seen["discarded"] += stats.scheduler.num_discarded_tokens

    def _check_transitions(self, engine: Engine, ranks: FakeRanks) -> None:
        """`most_transitions`, where nothing but a full tier ends a prefill phase."""
        scenario, tier = self.scenario, self.scenario.config.tier
        options = scenario.options
        strict = scenario.policy == "seesaw" and not options.get("low_mark")
        if tier is None or not strict or options.get("switch", "minimal") != "minimal":
            return
        if self._lives > 1 or not scenario.is_at_once:
            return
        for scheduler, model in zip(engine._replicas.schedulers, ranks.replicas, strict=True):
            prompts = model.prompts
            if scheduler.stats.num_preemptions or not prompts:
                continue
            bound = most_transitions(tier, prompts)
            self.seen["bound"] += 1
            count = scheduler.stats.num_transitions
            assert count <= bound, f"{count} transitions, the bound is {bound}"

    def _check_left(self, ranks: FakeRanks) -> None:
        """After a shutdown that no death caused; ranks may have died meanwhile."""
        if self.scenario.keep_ranks and not (ranks.victims and ranks.was_killed):
            assert ranks.was_killed is None, "the caller's ranks were ended"
            assert ranks.is_idle(), f"the next to use the ranks would hear: {ranks.describe()}"
        else:
            assert ranks.was_killed is not None, "ranks are left behind"

    def _check_death(self, error: EngineDeadError, ranks: FakeRanks) -> None:
        self.seen["deaths"] += 1
        assert ranks.victims, f"nobody died, but: {error}"
        assert ranks.was_killed, f"others are left waiting: {ranks.describe()}"
        named = [rank for rank in ranks.culprits() if str(error).startswith(f"rank {rank} ")]
        assert named, f"{ranks.culprits()} should be named: {error}"
        activity = ranks.activity(named[0])
        assert f"; it was in {activity}." in str(error), f"{activity} should be named: {error}"
        if self._dumps:
            assert f"rank {named[0]}: in {activity}" in self._dumps.pop(), "a dump without the rank"

    def _check_dead(self, engine: Engine, error: EngineDeadError) -> None:
        """Every later call fails at once and says why."""
        for call in (engine.step, lambda: engine.add_request("late", [1])):
            with raises(EngineDeadError) as caught:
                call()
            assert str(error) in str(caught[0]), f"{caught[0]} does not name {error}"
        engine.shutdown()
        engine.shutdown()


def executor_of(engine: Engine) -> RankExecutor:
    executor: Any = engine._replicas._executor
    assert isinstance(executor, RankExecutor)
    return executor


@contextlib.contextmanager
def raises(kind: type[Exception]) -> Iterator[list[Exception]]:
    """pytest's, for runs without pytest."""
    caught: list[Exception] = []
    try:
        yield caught
    except kind as error:
        caught.append(error)
    assert caught, f"no {kind.__name__}"
