"""Batch jobs over the fake ranks: engines die while rows run, the job goes on with the next one or
is started again, and every row is answered once, as if nothing had happened."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest

from seesaw.batch.job import run
from seesaw.batch.options import JobOptions
from seesaw.engine.engine import Engine
from seesaw.engine.prompts import PromptEncoder
from seesaw.errors import EngineDeadError, JobError
from tests.batch.helpers import Listener, completion, read_rows, write_rows
from tests.fuzz.clock import Clock
from tests.fuzz.fake_ranks import FakeRanks
from tests.fuzz.harness import FakeCheckpoint, config_of, dumps_kept, make_engine
from tests.fuzz.scenario import Fault, FaultKind, Scenario, random_scenario

SEEDS = 25
MOST_RUNS = 12
KINDS: tuple[FaultKind, ...] = ("killed", "ended", "failed", "frozen", "hung", "killed at start")


class Jobs:
    """A job that is run until it is done, with an engine of its own fault after the other."""

    def __init__(self, scenario: Scenario, folder: Path, rng: random.Random) -> None:
        self.scenario = dataclasses.replace(scenario, keep_ranks=True)
        self.folder = folder
        self.clock = Clock()
        self.num_engines = 0
        self.num_runs = 0
        ranks = scenario.decode.num_ranks
        self.faults = [
            Fault(rng.choice(KINDS), rng.randrange(ranks), rng.choice((0, 2, 6, 15)))
            for _ in range(rng.randint(1, 4))
        ]
        rows = [
            completion(asked.request_id, list(asked.prompt), **_body(asked.sampling.max_tokens))
            for asked in scenario.requests
        ]
        self.options = JobOptions(
            input=str(write_rows(folder / "in.jsonl", rows)),
            output=str(folder / "out.jsonl"),
            max_restarts=rng.choice((0, 1, 3)),
        )
        self.ids = [asked.request_id for asked in scenario.requests]

    def engine(self) -> Engine:
        fault = self.faults.pop(0) if self.faults else None
        self.num_engines += 1
        return make_engine(
            self.scenario, FakeRanks(self.scenario, self.clock, fault, self.num_engines)
        )

    def encoder(self) -> PromptEncoder:
        checkpoint: Any = FakeCheckpoint()
        return PromptEncoder(config_of(self.scenario), checkpoint)

    def run_to_the_end(self) -> dict[str, Any]:
        """What was answered, by row."""
        with dumps_kept([]):
            while True:
                self.num_runs += 1
                assert self.num_runs < MOST_RUNS, "the job never ends"
                try:
                    result = run(self.options, self.encoder, self.engine, Listener())
                except (JobError, EngineDeadError):  # the latter where an engine died as it started
                    continue
                assert result.exit_code in (0, 3), result
                break
        answered = read_rows(Path(self.options.output))
        errors = self.folder / "out.errors.jsonl"
        failed = read_rows(errors) if errors.exists() else []
        for row in failed:
            assert row["error"]["code"] == "engine_crash", row
        found = [row["custom_id"] for row in (*answered, *failed)]
        assert sorted(found) == sorted(self.ids), f"{found} of {self.ids}"
        return {row["custom_id"]: row["response"]["body"]["choices"] for row in answered}


def _body(max_tokens: int | None) -> dict[str, Any]:
    return {} if max_tokens is None else {"max_tokens": max_tokens}


@pytest.mark.parametrize("index", range(SEEDS))
def test_every_row_is_answered_once(tmp_path: Path, index: int) -> None:
    seed = random.SystemRandom().randrange(2**48)
    rng = random.Random(seed)
    scenario = random_scenario(seed, with_faults=False)
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    disturbed = Jobs(scenario, tmp_path / "with", rng)
    calm = Jobs(scenario, tmp_path / "without", rng)
    calm.faults.clear()
    told = f"seed {seed}: {disturbed.faults}, {disturbed.options.max_restarts} restarts"
    expected = calm.run_to_the_end()
    got = disturbed.run_to_the_end()
    assert expected.keys() == set(calm.ids), told
    assert got == {one: expected[one] for one in got}, told
    if len(got) < len(expected):
        # A row is given up only where three engines died with it.
        assert disturbed.num_engines >= 3, f"{told}: {expected.keys() - got.keys()} are given up"
