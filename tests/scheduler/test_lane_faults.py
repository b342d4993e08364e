"""Mistakes that lanes invite, planted one by one: random traces find each of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from seesaw.scheduler.blocks import BlockPool
from seesaw.scheduler.residency import Residency
from seesaw.scheduler.step import StepBuilder
from tests.scheduler.player import play
from tests.scheduler.traces import PROFILES, random_trace

MOST_TRACES = 1500
PROFILE = replace(
    PROFILES["lanes-chaos"],
    shared_prompts=1.0,
    abort_rate=0.05,
    requests=(4, 10),
    prompt_len=(4, 24),
    budget=(2, 12),
    spare_blocks=(10, 40),
    vocab_size=(40,),
)


def _runs_in_both_lanes(patch: pytest.MonkeyPatch) -> None:
    """A request has a row in one lane while the other still runs one."""
    schedule = StepBuilder.schedule

    def at_once(self: StepBuilder, request: Any, *args: Any, **kwargs: Any) -> bool:
        request.lane = self.lane
        return schedule(self, request, *args, **kwargs)

    patch.setattr(StepBuilder, "schedule", at_once)


def _shares_across_lanes_at_once(patch: pytest.MonkeyPatch) -> None:
    """A prompt that one lane is still computing is found by the other."""
    match = BlockPool.match

    def any_lane(self: BlockPool, tokens: Any, max_tokens: int, lane: int = 0) -> Any:
        written, self.written_in = self.written_in, {}
        try:
            return match(self, tokens, max_tokens)
        finally:
            self.written_in = written

    patch.setattr(BlockPool, "match", any_lane)


def _leaves_the_lane_early(patch: pytest.MonkeyPatch) -> None:
    """Who shares a prompt that is being computed, and has no row yet, runs in the other lane."""
    close = StepBuilder.close

    def forgetful(self: StepBuilder) -> None:
        self._early.clear()
        close(self)

    patch.setattr(StepBuilder, "close", forgetful)


def _frees_by_the_other_lane(patch: pytest.MonkeyPatch) -> None:
    """Blocks come back when the other lane is through with what came before."""

    def mixed_up(self: Residency, request: Any) -> bool:
        return request.last_step >= self.oldest_steps[1 - request.lane]

    patch.setattr(Residency, "is_in_flight", mixed_up)


@pytest.mark.parametrize(
    "plant",
    [
        _runs_in_both_lanes,
        _shares_across_lanes_at_once,
        _leaves_the_lane_early,
        _frees_by_the_other_lane,
    ],
)
def test_a_planted_mistake_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    base = random.SystemRandom().randrange(2**48)
    for seed in range(base, base + MOST_TRACES):
        try:
            play(random_trace(random.Random(seed), PROFILE))
        except (AssertionError, KeyError):
            return
    pytest.fail(f"{MOST_TRACES} traces from seed {base} on did not notice: {plant.__doc__}")
