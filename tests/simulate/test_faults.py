"""Bad luck: whatever comes late, goes slowly or dies, every request is answered in full, and the
schedulers' books (checked after every step) stay right."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from dataclasses import replace

import pytest

from seesaw.errors import ConfigError
from seesaw.simulate.faults import Death, Faults, SlowRank
from seesaw.simulate.simulation import simulate
from seesaw.trace import Spans
from tests.simulate.scenarios import make_scenario, random_scenario, watched

INF = math.inf


@pytest.mark.parametrize("seed", range(120))
def test_everything_finishes_whatever_goes_wrong(seed: int) -> None:
    scenario = random_scenario(random.Random(seed), with_faults=True)
    result = simulate(scenario)
    assert result.output_tokens == sum(answer for _, _, answer in scenario.requests)
    steady, tail = result.steady, result.tail
    assert steady.output_tokens + tail.output_tokens == result.output_tokens
    assert min(steady.output_tokens, steady.input_tokens, tail.output_tokens) >= 0
    assert sum(result.phase_s.values()) == pytest.approx(result.elapsed_s)


def test_what_the_random_faults_meet() -> None:
    """The property above is worth as much as what goes wrong in it."""
    met: dict[str, int] = defaultdict(int)
    for seed in range(120):
        result = simulate(random_scenario(random.Random(seed), with_faults=True))
        met["lost"] += result.num_lost > 0
        met["preempted"] += result.num_preemptions > 0
        met["transitions"] += result.num_transitions > 0
        met["stored back"] += result.scheduler["num_stored_back"] > 0
        met["discarded"] += result.scheduler["num_discarded_tokens"] > 0
    assert min(met[name] for name in ("lost", "preempted", "transitions", "discarded")) >= 10, met
    assert met["stored back"] >= 1, met


def test_reports_may_overtake_each_other_and_steps_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = make_scenario([(0.0, 8, 30)] * 8, "pp4", max_num_seqs=8)
    late = replace(scenario, faults=Faults(late_share=0.5, late_s=3.0), seed=5)
    with watched(monkeypatch) as seen:
        result = simulate(late)
    assert [step.step_id for _, step, _ in seen] == list(range(len(seen)))
    done = [ran.done_s for _, _, ran in seen]
    assert done == sorted(done)
    assert result.elapsed_s > simulate(scenario).elapsed_s
    # The same draws in another order would be another run.
    assert simulate(replace(late, seed=6)).elapsed_s != result.elapsed_s


def test_a_slow_rank_slows_its_stage_for_as_long_as_it_is_slow() -> None:
    faults = Faults(slow=[SlowRank(rank=0, begin_s=2.0, end_s=9.0, times=3.0)])
    spans = Spans()
    result = simulate(make_scenario([(0.0, 4, 6)], "tp2", faults=faults), spans)
    # Steps of 1 s: two, then those that begin at 2, 5 and 8, and one more.
    assert result.elapsed_s == 12.0
    for rank in (0, 1):
        ends = [span.end_s for span in spans.spans if span.rank == rank]
        assert ends == [1.0, 2.0, 5.0, 8.0, 11.0, 12.0]


def test_a_death_loses_what_a_replica_was_at_and_nothing_else() -> None:
    """Two replicas with two requests each, answered after 4 s; one dies at 2.5 s and is back at
    12.5 s. Its requests run again from the prompt."""
    faults = Faults(deaths=[Death(rank=1, at_s=2.5)], restart_s=10.0)
    spans = Spans()
    scenario = make_scenario([(0.0, 4, 4)] * 4, "dp2", faults=faults, times_tokens=True)
    result = simulate(scenario, spans)
    assert result.num_lost == 2
    # What was drawn before is drawn again; those requests began in their first life.
    assert [one.gaps_s for one in result.timings] == [[1.0, 1.0, 1.0]] * 4
    assert [one.scheduled_s for one in result.timings] == [0.0] * 4
    assert sorted(result.samples["end_to_end"]) == [4.0, 4.0, 16.5, 16.5]
    assert sorted(result.samples["first_token"]) == [1.0, 1.0, 13.5, 13.5]
    busy = [(span.start_s, span.end_s) for span in spans.spans if span.rank == 1]
    # The third step is cut off; nothing of its life before is left.
    assert busy == [(0, 1), (1, 2), (2, 2.5), (12.5, 13.5), (13.5, 14.5), (14.5, 15.5),
                    (15.5, 16.5)]  # fmt: skip
    assert result.busy_share == [pytest.approx(4.0 / 16.5), pytest.approx(6.5 / 16.5)]


def test_a_replica_that_is_down_gets_its_requests_when_it_is_back() -> None:
    faults = Faults(deaths=[Death(rank=0, at_s=0.5), Death(rank=0, at_s=0.7)], restart_s=2.0)
    result = simulate(make_scenario([(0.0, 4, 1), (1.0, 4, 1)], faults=faults))
    assert result.samples["end_to_end"] == [3.5, 2.5]
    assert result.num_lost == 1


def test_what_a_replica_did_counts_once_if_it_is_down_at_the_end() -> None:
    """Its only request has three tokens of prompt and two of answer, and ends before it dies."""
    requests = [(0.0, 3, 2), (0.0, 4, 8)]
    faults = Faults(deaths=[Death(rank=0, at_s=3.5)], restart_s=100.0)
    plain = simulate(make_scenario(requests, "dp2"))
    died = simulate(make_scenario(requests, "dp2", faults=faults))
    assert (died.elapsed_s, died.num_lost) == (8.0, 0)
    assert died.scheduler == plain.scheduler
    assert died.scheduler["num_steps"] == 2 + 8


def test_a_change_of_layout_that_a_death_forestalls_is_none() -> None:
    """The change to decode is planned while the prompt of 1 s is computed, and the rank dies at
    0.5 s; what counts is the change of the next life."""
    split = make_scenario(
        [(0.0, 4, 2)], "pp2 -> tp2", policy="seesaw", host_kv_memory="1MiB", transition_s=5.0
    )
    plain = simulate(split)
    died = simulate(replace(split, faults=Faults(deaths=[Death(0, 0.5)], restart_s=0.0)))
    assert died.num_lost == 1
    assert (died.num_transitions, died.transition_s) == (1, 5.0)
    assert died.weight_bytes_moved == plain.weight_bytes_moved
    assert sum(plain.weight_bytes_moved.values()) > 0


@pytest.mark.parametrize(
    ("faults", "named"),
    [
        (Faults(late_share=1.5), "late 1.5:0: expected a share"),
        (Faults(late_s=-1.0), "late 0:-1"),
        (Faults(late_s=1e308), "late 0:1e.308"),
        (Faults(restart_s=-1.0), "restart_s"),
        (Faults(restart_s=INF), "restart_s"),
        (Faults(slow=[SlowRank(1, 0.0, 1.0, 2.0)]), "slow 1:0:1:2: expected a rank from 0 to 0"),
        (Faults(slow=[SlowRank(0, 1.0, 1.0, 2.0)]), "the begin before the end"),
        (Faults(slow=[SlowRank(0, 0.0, INF, 2.0)]), "the begin before the end"),
        (Faults(slow=[SlowRank(0, 0.0, 1.0, 0.5)]), "a factor from 1"),
        (Faults(slow=[SlowRank(0, 0.0, 1.0, INF)]), "a factor from 1"),
        (Faults(deaths=[Death(3, 1.0)]), "death 3:1: expected a rank from 0 to 0"),
        (Faults(deaths=[Death(0, INF)]), "seconds from 0"),
        (Faults(deaths=[Death(0, math.nan)]), "seconds from 0"),
        (Faults(deaths=[Death(0, -1.0)]), "seconds from 0"),
    ],
)
def test_impossible_faults_are_refused(faults: Faults, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make_scenario([(0.0, 4, 1)], faults=faults)
