"""Policies from outside the package that do whatever the contract of `StepBuilder` allows, with one
layout, with two lanes of steps, or with two layouts and a tier between them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from seesaw.scheduler.policies.continuous import Continuous, ContinuousOptions
from seesaw.scheduler.request import Request
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
        if step.config.tier is None:
            if self._rng.random() < 0.7:
                self._run_some(step, may_store=False)
            if step.tokens_left == step.budget:
                self._steady.plan(step)
            return
        moved = False
        if self._rng.random() < 0.7:
            moved = self._move_some(step)
            if step.phase == "decode":
                moved |= self._run_some(step, may_store=True)
            else:
                self._prefill_some(step)
        if step.tokens_left < step.budget or moved or self._go_on(step):
            return
        if step.waiting or step.prefilling or step.running or step.stored or step.parked:
            step.switch()
            self._go_on(step)

    def _run_some(self, step: StepBuilder, *, may_store: bool) -> bool:
        """True where someone was stored back."""
        rng, stored = self._rng, False
        rng.shuffle(step.running)
        for request in list(step.running):
            choice = rng.random()
            if choice < 0.1:
                step.preempt(request)
            elif choice < 0.25 and may_store:
                stored |= step.store_back(request)
            elif choice < 0.8:
                step.schedule(request, rng.randint(1, 9), self._layers(step, request))
                if step.rotation_tokens and may_store and rng.random() < 0.3:
                    stored |= step.park(request)
        self._admit_some(step, rng.random())
        return stored

    def _prefill_some(self, step: StepBuilder) -> None:
        for request in self._rng.sample(step.prefilling, len(step.prefilling)):
            if self._rng.random() < 0.8:
                step.schedule(request, self._rng.randint(1, 9))
        self._admit_some(step, 0.5)

    def _admit_some(self, step: StepBuilder, share: float) -> None:
        rng = self._rng
        for request in rng.sample(list(step.waiting), len(step.waiting)):
            if rng.random() < share and self._admit(step, request, rng.randint(0, 2)):
                step.schedule(request, rng.randint(1, 9), self._layers(step, request))

    def _layers(self, step: StepBuilder, request: Request) -> tuple[int, int] | None:
        """Some of those that are left, with one layout and one lane; with stages all, since
        `continuous`, which helps out, may cut its budget there to less than what has begun."""
        if step.config.tier is not None or step.config.num_lanes > 1 or step.stages > 1:
            return None
        if self._rng.random() < 0.5:
            return None
        cursor = request.layer_cursor
        return cursor, self._rng.randint(cursor + 1, step.config.num_layers)

    def _admit(self, step: StepBuilder, request: Request, reserve: int) -> bool:
        relay = step.phase == "prefill" and self._rng.random() < 0.5 and step.can_relay(request)
        return step.admit(request, reserve_blocks=reserve, relay=relay)

    def _move_some(self, step: StepBuilder) -> bool:
        rng, moved = self._rng, False
        if rng.random() < 0.15:
            step.switch()
            moved = True
        for request in rng.sample(step.stored, len(step.stored)):
            if rng.random() < 0.4:
                moved |= step.load(request, reserve_blocks=rng.randint(0, 2))
            elif step.rotation_tokens and rng.random() < 0.4:
                step.join(request)
        for request in rng.sample(step.parked, len(step.parked)):
            if rng.random() < 0.4:
                moved |= step.fetch(request, reserve_blocks=rng.randint(0, 2))
        return moved

    def _go_on(self, step: StepBuilder) -> bool:
        """Do the next useful thing in this phase. False: there is none, so try the other one."""
        if self._wait_is_right(step):
            return True
        for request in list(step.prefilling if step.phase == "prefill" else step.running):
            while request in (*step.prefilling, *step.running) and not step.schedule(request, 9):
                if step.blocks_draining:
                    break
                step.preempt(step.running[-1])
            if step.tokens_left < step.budget:
                return True
        for request in list(step.waiting):
            outgrown = step.phase == "decode" and step.has_outgrown(request)
            if (step.phase == "prefill" or outgrown) and self._admit(step, request, 0):
                step.schedule(request, 9)
                return True
        loads = [step.load(request) for request in list(step.stored)]
        loads += [step.fetch(request) for request in list(step.parked)]
        return any(loads)

    def _wait_is_right(self, step: StepBuilder) -> bool:
        """At times, where something is on its way."""
        return bool(step.storing or step.loading) and self._rng.random() < 0.3


class ChaosLanes(Chaos):
    num_lanes = 2

    def plan(self, step: StepBuilder) -> None:
        super().plan(step)
        whole = step.config.share_units
        if self._rng.random() < 0.5:
            step.take_share(self._rng.randint(1, whole) / whole)


class ContinuousLanes(Continuous):
    """Each lane takes whatever the other has not."""

    num_lanes = 2
