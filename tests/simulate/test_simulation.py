"""Scenarios small enough to be worked out by hand, and one that queueing theory knows."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from statistics import fmean, pstdev

import pytest

from seesaw.errors import ConfigError, DoesNotFit, RequestError
from seesaw.plan.machine import Kind
from seesaw.plan.transition import planned_bytes
from seesaw.plan.workload import Arrivals, parse_workload
from seesaw.scheduler.residency import Residency
from seesaw.simulate.arrivals import draw_arrivals, draw_requests
from seesaw.simulate.faults import Death, Faults
from seesaw.simulate.simulation import HostCosts, simulate
from seesaw.trace import Spans
from tests.plan.devices import make_device, make_links, make_machine
from tests.simulate.scenarios import layouts, make_config, make_scenario, tiny_spec, watched

BLOCK_BYTES = tiny_spec().kv_bytes_per_token(2) * 4


def test_two_requests_on_one_device() -> None:
    """Steps of 1 s: both prompts, both answers, the longer answer."""
    result = simulate(make_scenario([(0.0, 4, 3), (0.0, 4, 2)]))
    assert result.samples["first_token"] == [1.0, 1.0]
    assert result.samples["end_to_end"] == [3.0, 2.0]
    assert result.samples["per_token"] == [1.0, 1.0]
    assert result.elapsed_s == 3.0
    assert result.phase_s == {"prefill": 0, "decode": 2, "mixed": 1, "reshard": 0, "idle": 0}
    assert result.mean_decode_batch == 1.5
    assert (result.tokens_per_s, result.output_tokens_per_s) == (13 / 3, 5 / 3)
    assert result.busy_share == [1.0]


def test_a_prompt_that_comes_while_another_answers_is_computed_beside_it() -> None:
    result = simulate(make_scenario([(0.0, 4, 5), (1.5, 4, 1)], max_steps_in_flight=1))
    # It waits for the step that began at 1 s, and is in the next.
    assert result.samples["first_token"] == [1.0, 1.5]
    assert result.elapsed_s == 5.0


def test_a_device_waits_for_the_next_arrival() -> None:
    result = simulate(make_scenario([(0.0, 4, 1), (10.0, 4, 1)]))
    assert result.samples["end_to_end"] == [1.0, 1.0]
    assert result.phase_s["idle"] == 9.0
    assert result.busy_share == [pytest.approx(2 / 11)]


def stored_requests(**fields: object) -> object:
    """Two prompts of one block that go through the tier: a store of a block takes 1 s, a load half
    of that."""
    device = make_device(
        step_overhead_s=1.0, store_bytes_per_s=BLOCK_BYTES, load_bytes_per_s=2 * BLOCK_BYTES
    )
    return make_scenario(
        [(0.0, 4, 3), (0.0, 4, 3)], policy="seesaw", host_kv_memory="1MiB",
        machine=make_machine(device), **fields,
    )  # fmt: skip


def test_two_requests_through_the_tier() -> None:
    """Prefill until 1; stores until 2 and 3. The first is loaded by 2.5 and answered in the steps
    that end at 3.5 and 4.5, which are handed over together; so the second's load is in the step
    behind them: from 4.5 to 5, answered at 6 and 7."""
    result = simulate(stored_requests())
    assert result.samples["first_token"] == [1.0, 1.0]
    assert result.samples["end_to_end"] == [4.5, 7.0]
    assert result.num_transitions == 1
    assert result.kv_store_bytes == result.kv_load_bytes == 2 * BLOCK_BYTES
    assert result.phase_s["prefill"] == 1.0


def test_prompts_that_fit_the_decode_pool_go_there_from_pool_to_pool() -> None:
    """Nothing is stored, and no store is waited for: 4.5 and 7 are the ends through the tier. The
    second's exchange is behind the first's, so it is in the step behind."""
    result = simulate(stored_requests(kv_path="peers"))
    assert result.samples["first_token"] == [1.0, 1.0]
    assert result.kv_relay_bytes == 2 * BLOCK_BYTES
    assert result.kv_store_bytes == result.kv_load_bytes == 0
    assert result.samples["end_to_end"] == [3.0, 4.0]


def test_stores_go_on_while_the_layout_changes() -> None:
    """The change takes from 1 to 11. What was stored meanwhile is loaded by 11.5 and by 12."""
    result = simulate(stored_requests(transition_s=10.0))
    assert result.samples["first_token"] == [1.0, 1.0]
    assert result.samples["end_to_end"] == [13.5, 15.5]
    assert result.transition_s == result.phase_s["reshard"] == 10.0


@pytest.mark.parametrize(
    ("kind", "overlap", "weights", "decode"),
    [
        ("cuda", True, (2.0, 10.0), (6.0, 10.75)),
        ("cpu", True, (2.0, 10.0), (6.0, 11.0)),
        ("cuda", False, None, (10.0, 11.0)),
        ("cpu", False, None, (10.0, 11.0)),
    ],
)
def test_layers_are_computed_as_their_weights_come(
    kind: Kind, overlap: bool, weights: tuple[float, float] | None, decode: tuple[float, float]
) -> None:
    """Two stages of a second each, then 8 s of weights from peers, for 1 s of four layers. They
    come in two rounds of two layers, 0 and 2, then 1 and 3: half a second is computed behind the
    last that was waited for, and the first quarter of a second before it. The core of a CPU copies
    8 s and computes one in any case."""
    spec, (prefill, decode_layout) = tiny_spec(), layouts("pp2 -> tp2")
    config = make_config(
        policy="seesaw", host_kv_memory="1MiB", overlap=overlap, reshard_from="peers"
    )
    moved, _ = planned_bytes(spec, 2, prefill, decode_layout, config, kind)
    peer = moved[0]["peer"] / 8.0
    assert moved[1]["peer"] == moved[0]["peer"]
    device = replace(make_device(step_overhead_s=1.0), kind=kind)
    machine = make_machine(device, 2, make_links(peer=peer))
    spans = Spans()
    result = simulate(
        make_scenario([(0.0, 4, 2)], "pp2 -> tp2", machine=machine, config=config), spans
    )
    assert result.elapsed_s == pytest.approx(decode[1])
    assert result.transition_s == result.phase_s["reshard"] == pytest.approx(decode[1] - 3.0)
    assert result.busy_share == pytest.approx([2 / decode[1]] * 2)
    for rank in (0, 1):
        lanes = {
            (span.lane, span.name.split()[0]): (span.start_s, span.end_s)
            for span in spans.spans
            if span.rank == rank
        }
        assert lanes["compute", "decode"] == pytest.approx(decode)
        if weights is None:
            assert lanes["compute", "to"] == pytest.approx((2.0, 10.0))
        else:
            assert lanes["weights", "to"] == pytest.approx(weights)


def test_groups_of_layers_are_stored_while_those_behind_them_are_computed() -> None:
    """A second for ten layers, two prompts, half a second for each one's KV: copies of four layers
    of both from 0.4 to 0.8, of four from 0.8 to 1.2, of two after that. Without, the first begins
    at 1."""
    spec = tiny_spec(num_layers=10)
    rate = spec.kv_bytes_per_token(2) * 4 / 0.5
    device = make_device(step_overhead_s=1.0, store_bytes_per_s=rate)
    ends: dict[bool, list[float]] = {}
    for overlap in (True, False):
        spans = Spans()
        scenario = make_scenario(
            [(0.0, 4, 3)] * 2, policy="seesaw", host_kv_memory="1MiB", overlap=overlap,
            machine=make_machine(device), spec=spec,
        )  # fmt: skip
        simulate(scenario, spans)
        stores = [span for span in spans.spans if span.lane == "store"]
        names = [span.name for span in stores]
        assert names == names[:2] * (3 if overlap else 1)
        ends[overlap] = [span.end_s for span in stores]
    assert ends[True] == pytest.approx([0.6, 0.8, 1.0, 1.2, 1.3, 1.4])
    assert ends[False] == pytest.approx([1.5, 2.0])


def test_stages_hand_on_what_they_computed() -> None:
    """1 s on each of two stages and half a second between them; the first stage cannot begin a
    token before the last has drawn the one before."""
    machine = make_machine(make_device(step_overhead_s=1.0), 2, make_links(send_latency_s=0.5))
    result = simulate(make_scenario([(0.0, 4, 2)], "pp2", machine=machine))
    assert result.samples["first_token"] == [2.5]
    assert result.samples["end_to_end"] == [5.0]
    assert result.busy_share == [0.4, 0.4]


def test_the_slowest_device_sets_the_pace_of_its_stage_only() -> None:
    slow, fast = make_device(step_overhead_s=3.0), make_device(step_overhead_s=1.0)
    requests = [(0.0, 4, 2)] * 2
    cut = make_scenario(requests, "tp2", machine=make_machine([slow, fast]))
    assert simulate(cut).elapsed_s == 6.0
    replicas = make_scenario(requests, "dp2", machine=make_machine([slow, fast]))
    assert simulate(replicas).samples["end_to_end"] == [6.0, 2.0]


def test_replicas_share_what_the_host_gives() -> None:
    """Each of two replicas gets half of the host's rate, where its own link would give all."""
    device = make_device(store_bytes_per_s=BLOCK_BYTES, load_bytes_per_s=BLOCK_BYTES)
    times = {}
    for shared in (None, BLOCK_BYTES / 1.0):
        machine = make_machine(device, 2, host_bytes_per_s=shared)
        scenario = make_scenario(
            [(0.0, 4, 2)] * 2, "dp2", policy="seesaw", machine=machine, host_kv_memory="1MiB"
        )
        result = simulate(scenario)
        times[shared] = result.elapsed_s
    assert times == {None: 2.0, BLOCK_BYTES: 4.0}


def test_the_driver_needs_time_for_each_step() -> None:
    host = HostCosts(step_s=0.25, row_s=0.25)
    one_by_one = make_scenario([(0.0, 4, 3)], host=host, max_steps_in_flight=1)
    assert simulate(one_by_one).elapsed_s == 4.5
    # The next step is planned while one runs.
    assert simulate(replace(one_by_one, max_steps_in_flight=2)).elapsed_s == 3.5


def test_one_driver_hands_over_to_one_replica_after_the_other() -> None:
    host = HostCosts(step_s=0.5)
    result = simulate(make_scenario([(0.0, 4, 1)] * 2, "dp2", host=host))
    assert result.samples["end_to_end"] == [1.5, 2.0]
    apart = HostCosts(step_s=0.5, per_replica=True)
    result = simulate(make_scenario([(0.0, 4, 1)] * 2, "dp2", host=apart))
    assert result.samples["end_to_end"] == [1.5, 1.5]


def test_answers_of_unknown_length_end_where_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [(0.0, 4, 3), (0.0, 6, 7)]
    known = simulate(make_scenario(requests))
    unknown = make_scenario(requests, answers_known=False, max_tokens=20)
    with watched(monkeypatch) as seen:
        result = simulate(unknown)
    assert result.samples["end_to_end"] == known.samples["end_to_end"]
    assert result.output_tokens == 10
    # One step was in flight when each end was drawn, with a row that nobody needs.
    rows = sum(len(step.rows) for _, step, _ in seen)
    assert rows == 10 + 2
    capped = simulate(make_scenario(requests, answers_known=False, max_tokens=5))
    assert capped.output_tokens == 3 + 5


def test_a_store_that_outlasts_the_last_answer_counts() -> None:
    """The only answer ends with its first token, while its prompt is on the way to the tier."""
    device = make_device(step_overhead_s=1.0, store_bytes_per_s=BLOCK_BYTES)
    result = simulate(
        make_scenario([(0.0, 4, 1)], answers_known=False, max_tokens=3, policy="seesaw",
                      host_kv_memory="1MiB", machine=make_machine(device))
    )  # fmt: skip
    assert result.elapsed_s == 1.0
    assert (result.kv_store_bytes, result.kv_load_bytes) == (BLOCK_BYTES, 0)


def test_the_tail_begins_when_half_of_the_best_batch_is_gone() -> None:
    """Four answers until 4; beside and after them chunks of one long prompt, which is no part of
    the steady time as its answer did not begin in it."""
    requests = [(0.0, 4, 4)] * 4 + [(0.0, 64, 1)]
    result = simulate(make_scenario(requests, max_num_batched_tokens=16))
    steady, tail = result.steady, result.tail
    assert (steady.seconds, steady.input_tokens, steady.output_tokens) == (4.0, 16, 16)
    assert (tail.seconds, tail.input_tokens, tail.output_tokens) == (2.0, 64, 1)
    assert (steady.tokens_per_s, tail.output_tokens_per_s) == (8.0, 0.5)


def test_the_tail_is_less_than_half_of_the_batch() -> None:
    """Of four answers two are left at 4, which is half, and one at 6."""
    result = simulate(make_scenario([(0.0, 4, answer) for answer in (2, 4, 6, 8)]))
    assert (result.steady.seconds, result.tail.seconds) == (6.0, 2.0)
    assert result.tail.output_tokens == 2


def test_each_replica_gets_what_it_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what is left to do, not by turns: the long request's replica gets no other."""
    requests = [(0.0, 4, 40), *[(0.0, 4, 4)] * 4]
    with watched(monkeypatch) as seen:
        simulate(make_scenario(requests, "dp2"))
    home = {row.request_id: first for first, step, _ in seen
            for row in step.rows}  # fmt: skip
    assert home == {"0": 0, "1": 1, "2": 1, "3": 1, "4": 1}


def test_what_a_replica_has_done_is_not_left_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first has nothing to do from 40 s on, the other has until 41 s, and had less in all."""
    requests = [(0.0, 4, 40), (0.0, 4, 4), (10.0, 4, 31), (40.5, 4, 1)]
    with watched(monkeypatch) as seen:
        simulate(make_scenario(requests, "dp2"))
    home = {row.request_id: first for first, step, _ in seen
            for row in step.rows}  # fmt: skip
    assert home == {"0": 0, "1": 1, "2": 1, "3": 0}


def test_a_replica_that_began_anew_gets_its_share_again(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [*[(0.0, 4, 40)] * 2, *[(5.0, 4, 4)] * 2]
    faults = Faults(deaths=[Death(0, 0.5)], restart_s=1.0)
    with watched(monkeypatch) as seen:
        simulate(make_scenario(requests, "dp2", faults=faults))
    home = {row.request_id: first for first, step, _ in seen
            for row in step.rows}  # fmt: skip
    assert home == {"0": 0, "1": 1, "2": 0, "3": 1}


def test_a_job_keeps_no_more_in_the_engine_than_it_can_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    most = 0
    add = Residency.add

    def counted(self: Residency, request: object) -> None:
        nonlocal most
        add(self, request)  # type: ignore[arg-type]
        most = max(most, len(self.requests))

    monkeypatch.setattr(Residency, "add", counted)
    result = simulate(make_scenario([(0.0, 4, 2)] * 200, max_num_seqs=3))
    assert result.num_requests == 200
    # Twice as many as run; those that ended may be known until the next step.
    assert 6 <= most <= 6 + 3


def test_one_server_with_random_arrivals_keeps_to_queueing_theory() -> None:
    """One request at a time, each 1 s, Poisson arrivals: M/D/1, mean wait r / (2 (1 - r)) at
    utilisation r. Little's law: how many are inside, looked at when others arrive (which see time
    averages), is the arrival rate times their mean time inside."""
    rate = 0.5
    lengths = parse_workload("4:1")
    requests = draw_requests(lengths, 20_000, arrivals=Arrivals(rate, 1.0), seed=3)
    scenario = make_scenario(requests, max_num_seqs=1, max_steps_in_flight=1, debug=False)
    result = simulate(scenario)
    waits = [seconds - 1.0 for seconds in result.samples["end_to_end"]]
    assert min(waits) >= -1e-6
    assert fmean(waits) == pytest.approx(rate / (2 * (1 - rate)), rel=0.05)
    assert result.busy_share[0] == pytest.approx(rate, rel=0.03)
    ends = [came + 1.0 + wait for (came, _, _), wait in zip(requests, waits, strict=True)]
    inside, gone = [], 0
    for index, (came, _, _) in enumerate(requests):
        while ends[gone] <= came:
            gone += 1
        inside.append(index - gone)
    measured_rate = len(requests) / result.elapsed_s
    assert fmean(inside) == pytest.approx(measured_rate * (1 + fmean(waits)), rel=0.05)


# -- what is refused -------------------------------------------------------------------------------


def test_requests_that_could_never_run_are_refused_before_any_runs() -> None:
    with pytest.raises(RequestError, match="max_model_len=8"):
        simulate(make_scenario([(0.0, 4, 2), (0.0, 9, 2)], max_model_len=8))
    with pytest.raises(DoesNotFit):
        simulate(make_scenario([(0.0, 4, 2)], device_memory="1MiB"))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"requests": []}, "at least one"),
        ({"requests": [(0.0, 4, 0)]}, "requests.0"),
        ({"requests": [(0.0, 0, 4)]}, "requests.0"),
        ({"requests": [(1.0, 4, 4), (0.5, 4, 4)]}, "requests.1"),
        ({"requests": [(-1.0, 4, 4)]}, "requests.0"),
        ({"layouts": layouts("tp2")}, "takes 2 devices"),
        ({"transition_s": -1.0}, "transition_s"),
        ({"transition_s": float("nan")}, "transition_s"),
        ({"requests": [(float("nan"), 4, 4)]}, "requests.0"),
        ({"requests": [(0.0, 4, 4), (float("inf"), 4, 4)]}, "requests.1"),
        ({"host": HostCosts(row_s=float("inf"))}, "host.row_s"),
        ({"host": HostCosts(step_s=-1.0)}, "host.step_s"),
        ({"num_blocks": 0}, "num_blocks"),
        ({"max_tokens": 4}, "answers_known"),
    ],
)
def test_impossible_scenarios_are_refused(fields: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        replace(make_scenario([(0.0, 4, 2)]), **fields)


# -- arrivals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_arrivals_have_the_rate_and_the_bursts_that_were_asked_for(cv: float) -> None:
    times = draw_arrivals(Arrivals(4.0, cv), 40_000, seed=random.Random(1).randrange(100))
    gaps = [later - at for at, later in pairwise(times)]
    assert times[0] == 0.0
    assert min(gaps) >= 0
    assert fmean(gaps) == pytest.approx(0.25, rel=0.05)
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(cv, rel=0.1)


def test_arrivals_at_once_at_constant_gaps_and_by_seed() -> None:
    assert draw_arrivals(None, 3, seed=1) == [0.0, 0.0, 0.0]
    for none in (0.0, 5e-324, 1e-155, 1e-7):
        assert draw_arrivals(Arrivals(2.0, none), 3, seed=1) == [0.0, 0.5, 1.0]
    assert draw_arrivals(Arrivals(2.0, 1.0), 1, seed=1) == [0.0]
    first, again, other = (draw_arrivals(Arrivals(2.0, 2.0), 9, seed) for seed in (1, 1, 2))
    assert first == again != other
    for wrong in (Arrivals(0.0, 1.0), Arrivals(1.0, -1.0), Arrivals(float("inf"), 1.0),
                  Arrivals(1.0, 1e200), Arrivals(1.0, float("nan"))):  # fmt: skip
        with pytest.raises(ConfigError):
            draw_arrivals(wrong, 1, seed=0)
