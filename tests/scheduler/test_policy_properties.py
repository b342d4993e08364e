"""Every other policy of one layout through random traces: full and tiny pools, late and reordered
reports, aborts, several stages. Each request gets the answer that it would get alone, within every
budget and by the policy's own rules (`policy_rules`), and ends within a bound.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seesaw.scheduler import policies
from tests.scheduler.player import Player
from tests.scheduler.rules import BUILT_IN
from tests.scheduler.traces import (
    POLICY_OPTIONS,
    PROFILES,
    random_trace,
    shapes_for,
    with_policy,
)

TRACES_PER_PROFILE = 120
NEVER_YIELD = ("sarathi",)
MET = {
    "prefill-first": {"cut prompts"},
    "layered-prefill": {"groups of layers", "ready decodes"},
    "nexus": {"beside", "answers", "parts of the device"},
    "sarathi": {"full chunks", "ready decodes"},
    "sarathi-serve": {"hybrid", "turns", "ready decodes"},
}
"""What traces of a policy must have met, or its rules say nothing."""


def play_seed(policy: str, shape: str, seed: int) -> Player:
    player = Player(random_trace(random.Random(seed), with_policy(PROFILES[shape], policy)))
    try:
        player.play()
    except Exception as error:
        error.add_note(f"play again: play_seed({policy!r}, {shape!r}, {seed})")
        raise
    return player


def test_every_built_in_policy_is_played() -> None:
    """Here, or in `test_properties` and `test_tier_properties`."""
    assert set(BUILT_IN) == set(policies.BUILT_IN)


@pytest.mark.parametrize("policy", POLICY_OPTIONS)
def test_random_traces(policy: str) -> None:
    base = random.SystemRandom().randrange(2**48)
    seen: Counter[str] = Counter()
    for shape in shapes_for(policy):
        for seed in range(base, base + TRACES_PER_PROFILE):
            player = play_seed(policy, shape, seed)
            stats = player.scheduler.stats
            seen += player.rules.seen
            seen.update(state.rstrip("+") for state in player.aborted.values())
            seen["yielded requests"] += stats.num_preemptions
            seen["discarded"] += stats.num_discarded_tokens
            seen["shared"] += stats.num_cached_tokens
    # These many traces must have met what they are for, or they show nothing.
    wanted = {"waiting", "prefilling", "resident", "discarded", "shared"}
    wanted |= MET.get(policy, set())
    if policies.num_lanes(policy) == 1:
        wanted.add("shares")
    if policy not in NEVER_YIELD:
        wanted |= {"yielded", "yielded requests"}
    assert wanted <= set(seen), f"not met: {wanted - set(seen)}"


@pytest.mark.parametrize("policy", POLICY_OPTIONS)
def test_the_same_trace_gives_the_same_steps(policy: str) -> None:
    base = random.SystemRandom().randrange(2**48)
    for shape in {"mixed", "tiny-pool", "pipeline"}.intersection(shapes_for(policy)):
        for seed in range(base, base + 10):
            first, again = (play_seed(policy, shape, seed).outputs for _ in range(2))
            assert first == again, f"play_seed({policy!r}, {shape!r}, {seed})"


@settings(max_examples=150)
@given(
    st.randoms(use_true_random=False),
    st.sampled_from(
        [(policy, shape) for policy in sorted(POLICY_OPTIONS) for shape in shapes_for(policy)]
    ),
)
def test_traces_that_shrink(rng: random.Random, played: tuple[str, str]) -> None:
    policy, shape = played
    Player(random_trace(rng, with_policy(PROFILES[shape], policy))).play()


@pytest.mark.parametrize("policy", [name for name in POLICY_OPTIONS if name != "nexus"])
def test_requests_begin_in_order_of_arrival(policy: str) -> None:
    rng = random.Random(seed := random.SystemRandom().randrange(2**48))
    for _ in range(60):
        trace = random_trace(rng, with_policy(PROFILES["tiny-pool"], policy))
        player = Player(trace)
        player.play()
        order = [
            int(new.request_id) for step in player.outputs for new in step.new_requests
            if new.request_id.isdigit()
        ]  # fmt: skip
        expected = sorted(order, key=lambda index: (trace.scripts[index].arrival_tick, index))
        assert order == expected, f"seed {seed}"


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        ("sarathi", {}),
        ("sarathi-serve", {}),
        ("sarathi-serve", {"batches": "hybrid-only"}),
        ("layered-prefill", {}),
        ("nexus", {}),
    ],
)
def test_no_decode_stalls(policy: str, options: dict[str, str]) -> None:
    """Counted by the scheduler's own counter, in steps that have room for all that run."""
    rng = random.Random(seed := random.SystemRandom().randrange(2**48))
    num_decodes = 0
    for _ in range(60):
        trace = random_trace(rng, with_policy(PROFILES[rng.choice(shapes_for(policy))], policy))
        budget = trace.config.max_num_batched_tokens + trace.config.max_num_seqs
        config = replace(trace.config, num_stages=1, max_num_batched_tokens=budget)
        given_options = trace.options | options
        if policy == "sarathi-serve":
            given_options = trace.options | {"batches": "stall-free"} | options
        player = Player(replace(trace, config=config, options=given_options))
        player.play()
        assert player.scheduler.counter is not None
        counts = player.scheduler.counter.counts
        assert (counts.num_stalls, counts.num_stalled_steps) == (0, 0), f"seed {seed}"
        num_decodes += counts.num_decode_rows
    assert num_decodes > 0
