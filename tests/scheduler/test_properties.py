"""Thousands of random traces: whatever the schedule, each request gets the answer it would get
alone, within every budget, and nothing is left behind. The checks are in `traces` and
`worker_model`.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scheduler.player import Played, play
from tests.scheduler.traces import PROFILES, Trace, random_trace

TRACES_PER_PROFILE = 400


def play_seed(name: str, seed: int) -> Played:
    trace = random_trace(random.Random(seed), PROFILES[name])
    try:
        return play(trace)
    except Exception as error:
        error.add_note(f"play again: play_seed({name!r}, {seed})")
        raise


@pytest.mark.parametrize("name", PROFILES)
def test_random_traces(name: str) -> None:
    base = random.SystemRandom().randrange(2**48)
    played = [play_seed(name, base + offset) for offset in range(TRACES_PER_PROFILE)]
    # These many traces must have met what they are for, or they show nothing.
    assert sum(one.stats.num_preemptions for one in played) > 0
    assert sum(one.stats.num_discarded_tokens for one in played) > 0
    assert sum(one.stats.num_cached_tokens for one in played) > 0
    aborted = {status for one in played for status in one.aborted_as}
    assert {"waiting", "prefilling", "resident"} <= aborted
    if name == "aborts":  # a plus: it had yielded before
        assert {"yielded+", "resident+"} <= aborted


@pytest.mark.parametrize("name", PROFILES)
def test_the_same_trace_gives_the_same_steps(name: str) -> None:
    base = random.SystemRandom().randrange(2**48)
    for seed in range(base, base + 40):
        assert play_seed(name, seed).outputs == play_seed(name, seed).outputs, seed


@settings(max_examples=150)
@given(st.randoms(use_true_random=False), st.sampled_from(sorted(PROFILES)))
def test_traces_that_shrink(rng: random.Random, name: str) -> None:
    play(random_trace(rng, PROFILES[name]))


@pytest.mark.parametrize("name", ["mixed", "tiny-pool", "shuffled"])
def test_answers_do_not_depend_on_the_schedule(name: str) -> None:
    """The same requests under other budgets, pools and numbers of steps in flight."""
    rng = random.Random(random.SystemRandom().randrange(2**48))
    for _ in range(40):
        trace = random_trace(rng, PROFILES[name])
        # Aborts and stops from outside depend on time by their nature.
        scripts = [
            replace(
                script,
                abort_tick=None,
                abort_after_tokens=None,
                abort_after_preemption=None,
                abort_in_state=None,
                stop_pair=None,
            )
            for script in trace.scripts
        ]
        answers = [
            [(r.output_token_ids, r.finish_reason, r.stop_reason) for r in play(variant).requests]
            for variant in _variants(replace(trace, scripts=scripts), rng)
        ]
        assert all(answer == answers[0] for answer in answers)


def _variants(trace: Trace, rng: random.Random) -> list[Trace]:
    config = trace.config
    return [
        trace,
        replace(trace, config=replace(config, max_num_batched_tokens=rng.randint(1, 64))),
        replace(trace, config=replace(config, num_blocks=config.num_blocks + rng.randint(1, 200))),
        replace(trace, config=replace(config, max_steps_in_flight=1), in_order=True),
        replace(trace, config=replace(config, max_num_seqs=1)),
        replace(
            trace,
            config=replace(config, enable_prefix_caching=not config.enable_prefix_caching),
        ),
        replace(trace, policy="tests.scheduler.chaos:Chaos", options={"seed": rng.randrange(99)}),
    ]


def test_requests_begin_in_order_of_arrival() -> None:
    rng = random.Random(random.SystemRandom().randrange(2**48))
    for _ in range(100):
        trace = random_trace(rng, PROFILES["tiny-pool"])
        order = [
            int(new.request_id) for step in play(trace).outputs for new in step.new_requests
            if new.request_id.isdigit()
        ]  # fmt: skip
        expected = sorted(order, key=lambda index: (trace.scripts[index].arrival_tick, index))
        assert order == expected
