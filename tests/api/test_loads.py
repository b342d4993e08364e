"""Loads, the open loop that puts them on an engine, the search for a capacity, and its journal."""

from __future__ import annotations

import random
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from seesaw.api.serving.capacity import Rule, Trial, find_capacity
from seesaw.api.serving.journal import Journal
from seesaw.api.serving.live import _answers, _Feeder
from seesaw.api.serving.load import Traffic
from seesaw.errors import ConfigError
from seesaw.latency import Slo, Spread, Timing, samples
from seesaw.outputs import RequestOutput
from seesaw.plan.workload import Constant, Lengths, Listed, parse_workload

# -- loads -----------------------------------------------------------------------------------------


def test_another_rate_has_the_same_requests_with_other_gaps() -> None:
    seed = random.randrange(1 << 30)
    traffic = Traffic(parse_workload("sharegpt-8k"), 200, cv=1.0, seed=seed)
    slow, quick = traffic.at(0.5), traffic.at(4.0)
    assert [one[1:] for one in slow.requests] == [one[1:] for one in quick.requests]
    assert slow.requests[0].arrival_s == 0.0
    for one, other in zip(slow.requests, quick.requests, strict=True):
        assert one.arrival_s == pytest.approx(8 * other.arrival_s), f"seed {seed}"
    prompts = slow.prompts(100)
    assert [len(prompt) for prompt in prompts] == [one.prompt for one in slow.requests]
    assert prompts == quick.prompts(100)
    assert prompts != Traffic(traffic.workload, 200, cv=1.0, seed=seed + 1).at(1.0).prompts(100)


def test_requests_that_are_too_long_are_drawn_again() -> None:
    seed = random.randrange(1 << 30)
    workload = parse_workload("sharegpt-8k")
    every = Traffic(workload, 300, cv=1.0, seed=seed).lengths
    short = Traffic(workload, 300, cv=1.0, seed=seed, longest=2000).lengths
    assert max(one.prompt + one.answer for one in every) > 2000, f"seed {seed}"
    assert max(one.prompt + one.answer for one in short) <= 2000, f"seed {seed}"
    kept = [one for one in every if one.prompt + one.answer <= 2000]
    assert short[: len(kept)] == kept, f"seed {seed}"
    assert len(short) == 300
    with pytest.raises(ConfigError, match=r"the shortest of .* has 192 tokens"):
        _ = Traffic(parse_workload("128:64"), 4, cv=1.0, seed=0, longest=100).lengths


# -- the open loop ---------------------------------------------------------------------------------


class StuckEngine:
    """Takes no step before all requests are there."""

    def __init__(self, count: int) -> None:
        self.added: list[tuple[str, int, float]] = []
        self.count = count
        self.all_came = threading.Event()

    def add_request(self, request_id: str, prompt: list[int], *_: object, **more: Any) -> None:
        assert more["times_tokens"]
        assert more["arrival_s"] <= time.perf_counter(), "added before it came"
        self.added.append((request_id, len(prompt), more["arrival_s"]))
        if len(self.added) == self.count:
            self.all_came.set()

    def has_unfinished_requests(self) -> bool:
        return bool(self.added)

    def step(self) -> list[RequestOutput]:
        assert self.all_came.wait(30), "the driver waits for answers before it adds requests"
        growing = RequestOutput("0", None, [])
        return [growing] + [RequestOutput(one[0], None, [], finished=True) for one in self.added]


def test_requests_come_at_their_moments_whatever_the_engine_does() -> None:
    traffic = Traffic(Listed("three", [Lengths(1, 2), Lengths(3, 1)]), 6, cv=0.0, seed=0)
    load = traffic.at(200.0)
    engine, seen = StuckEngine(6), []
    feeder = _Feeder(engine, load, load.prompts(10))  # type: ignore[arg-type]
    feeder.start()
    outputs = _answers(engine, feeder, 6, lambda done, total: seen.append((done, total)))  # type: ignore[arg-type]
    feeder.stop()
    assert sorted(outputs) == list(range(6))
    assert seen == [(6, 6)]
    assert [(name, length) for name, length, _ in engine.added] == [
        (str(number), (1, 3)[number % 2]) for number in range(6)
    ]
    came = [at_s - feeder.began_s for _, _, at_s in engine.added]
    assert came == pytest.approx([number / 200 for number in range(6)])


class RefusingEngine(StuckEngine):
    def add_request(self, *_: object, **more: Any) -> None:
        raise ConfigError("not like this")


def test_what_ends_the_feeder_ends_the_run() -> None:
    load = Traffic(Constant("c", "", Lengths(1, 1)), 2, cv=0.0, seed=0).at(1.0)
    engine = RefusingEngine(2)
    feeder = _Feeder(engine, load, load.prompts(10))  # type: ignore[arg-type]
    feeder.start()
    with pytest.raises(ConfigError, match="not like this"):
        _answers(engine, feeder, 2, lambda done, total: None)  # type: ignore[arg-type]
    feeder.stop()


# -- the search ------------------------------------------------------------------------------------


def test_the_search_finds_where_a_system_begins_to_fail() -> None:
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    for _ in range(300):
        limit, start = 10 ** rng.uniform(-2, 2), 10 ** rng.uniform(-2, 2)
        tried: list[float] = []

        def trial(rate: float, limit: float = limit, tried: list[float] = tried) -> Trial:
            tried.append(rate)
            return Trial(rate_per_s=rate, broken="too much" if rate > limit else None)

        found = find_capacity(trial, start, most_trials=60)
        assert found.above_per_s is not None
        assert found.rate_per_s <= limit < found.above_per_s <= 1.05 * found.rate_per_s, (
            f"seed {seed}"
        )
        assert tried == [one.rate_per_s for one in found.trials], f"seed {seed}"
        assert len(tried) <= 20, f"seed {seed}"
        few = find_capacity(trial, start, most_trials=3)
        assert len(few.trials) == 3
        assert few.rate_per_s <= limit, f"seed {seed}"
        assert few.above_per_s is None or few.above_per_s > limit, f"seed {seed}"


def test_trials_rise_only_between_what_was_found() -> None:
    """Never beyond a rate that failed, nor below one that did not."""
    rates: list[float] = []

    def trial(rate: float) -> Trial:
        rates.append(rate)
        return Trial(rate_per_s=rate, broken=None if rate < 10 else "late")

    find_capacity(trial, 1.0)
    assert rates[:5] == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert all(8 < rate < 16 for rate in rates[5:])
    gaps = [abs(one - other) for one, other in pairwise(rates[4:])]
    assert gaps == sorted(gaps, reverse=True)


def test_a_system_that_bears_nothing_or_everything() -> None:
    nothing = find_capacity(lambda rate: Trial(rate_per_s=rate, broken="late"), 1.0, most_trials=4)
    assert (nothing.rate_per_s, nothing.above_per_s) == (0.0, 0.125)
    assert "no rate down to 0.125/s keeps to it: late" in nothing.describe()
    alone = find_capacity(
        lambda rate: Trial(rate_per_s=rate, broken="late", came_alone=rate <= 0.5), 1.0
    )
    assert (alone.rate_per_s, alone.above_per_s, len(alone.trials)) == (0.0, 0.5, 2)
    assert "a lower rate cannot help" in alone.describe()
    most = find_capacity(
        lambda rate: Trial(rate_per_s=rate, broken=None, came_at_once=rate >= 8), 1.0
    )
    assert (most.rate_per_s, most.above_per_s, len(most.trials)) == (8.0, None, 4)
    assert "Take more requests" in most.describe()


def test_the_rule_is_of_percentiles() -> None:
    """One gap in a hundred and fifty may be long; of delays less than half."""
    quick = [Timing.of(0.0, 1.0, [2.0, *(2.0 + n / 10 for n in range(1, 16))]) for _ in range(9)]
    slow = Timing.of(0.0, 9.0, [10.0, 20.0])
    found = {name: Spread.of(one) for name, one in samples([*quick, slow]).items()}
    assert Rule(slo=Slo(tbt_s=0.2)).broken(found) is None
    assert Rule(slo=Slo(tbt_s=0.05)).broken(found) == "TBT p99 0.1 s, bound 0.05 s"
    assert (Rule(slo=Slo(ttft_s=5.0)).broken(found) or "").startswith("TTFT p99 9.28 s")
    assert Rule(slo=Slo(), delay_s=0.9).broken(found) == "median delay 1 s, bound 0.9 s"


def test_a_journal_keeps_runs_and_is_of_one_bench(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    about = {"seed": 1, "promised": {"tbt_s": 0.2}, "settings": {"lengths": (1, 2)}}
    journal = Journal(file, about)
    assert journal.get("a", 0.1) is None
    journal.add({"policy": "a", "rate_per_s": 0.1, "latency_s": 3})
    journal.add({"policy": "b", "rate_per_s": 0.1, "latency_s": 4})
    with file.open("a") as cut:
        cut.write('{"policy": "c", "rate')
    again = Journal(file, about)
    found = again.get("a", 0.1)
    assert found is not None
    assert found["latency_s"] == 3
    assert again.get("c", 0.1) is None
    again.add({"policy": "c", "rate_per_s": 0.1})
    assert Journal(file, about).get("c", 0.1) is not None
    with pytest.raises(ConfigError, match="seed was 1, now it is 2"):
        Journal(file, about | {"seed": 2})


@pytest.mark.parametrize("held", [b"something else\n", b'{"a": "file of one line"}', b"\xa4\n\xff"])
def test_no_other_file_is_written_over_by_a_journal(held: bytes, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(held)
    with pytest.raises(ConfigError, match="is no file of such runs"):
        Journal(file, {"seed": 1})
    assert file.read_bytes() == held


def test_a_journal_whose_first_line_was_cut_off_is_begun_anew(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    file.write_text('{"see')
    Journal(file, {"seed": 1})
    assert file.read_text() == '{"seed": 1}\n'
