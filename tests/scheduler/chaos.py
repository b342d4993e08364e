"""A policy from outside the package that does whatever the contract of `StepBuilder` allows."""

from __future__ import annotations

import random
from dataclasses import dataclass

from seesaw.scheduler.policies.continuous import Continuous, ContinuousOptions
from seesaw.scheduler.step import StepBuilder


@dataclass(frozen=True, kw_only=True)
class ChaosOptions:
    seed: int = 0


class Chaos:
    Options = ChaosOptions

    def __init__(self, options: ChaosOptions) -> None:
        self._rng = random.Random(options.seed)
        self._steady = Continuous(ContinuousOptions())

    def plan(self, step: StepBuilder) -> None:
        rng = self._rng
        if rng.random() < 0.7:
            rng.shuffle(step.running)
            for request in list(step.running):
                choice = rng.random()
                if choice < 0.1:
                    step.preempt(request)
                elif choice < 0.8:
                    step.schedule(request, rng.randint(1, 9))
            for request in rng.sample(list(step.waiting), len(step.waiting)):
                if rng.random() < 0.5 and step.admit(request, reserve_blocks=rng.randint(0, 2)):
                    step.schedule(request, rng.randint(1, 9))
        if step.tokens_left == step.config.max_num_batched_tokens:
            self._steady.plan(step)
