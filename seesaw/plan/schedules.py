"""What the scheduler's schedules add up to over a job, in closed form, for one replica.

Waves of answers, chunks of prompts beside them, phases and their transitions, pipeline bubbles,
tails. What one step costs is `step_times`' business; step by step truth is `seesaw.simulate`,
against which these forms are tested.

Source of the phases: Seesaw (MLSys 2025), sections 4.1 and 4.2; terms it leaves out are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

from seesaw.layout.kv import STORE_LAYERS
from seesaw.layout.ranges import rank_ranges
from seesaw.plan.demand import Demand
from seesaw.plan.memory import MemoryPlan
from seesaw.plan.rotation import Rotation
from seesaw.plan.step_times import BUBBLES, HOST_LINK, Spent, Steps


@dataclass(slots=True)
class Phases:
    """What the phases of a job add up to."""

    prefill: Spent
    decode: Spent
    mixed: Spent
    num_transitions: int
    transition_s: float
    decode_batch: float
    rotation: Rotation | None

    @classmethod
    def of(cls, decode_batch: float, rotation: Rotation | None) -> Self:
        prefill, decode, mixed = (Spent.nothing() for _ in range(3))
        return cls(prefill, decode, mixed, 0, 0.0, decode_batch, rotation)

    @property
    def elapsed_s(self) -> float:
        spent = self.prefill.seconds + self.decode.seconds + self.mixed.seconds
        return spent + self.transition_s


class Wave(NamedTuple):
    """`size` requests decode together for `rounds`; `prompts` requests come with it, in `times`
    rushes."""

    size: float
    rounds: float
    prompts: float = 0.0
    times: float = 1.0


class Replica:
    """One replica with `demand` of its own, in layouts of one replica."""

    def __init__(
        self, demand: Demand, memory: MemoryPlan, steps: Mapping[str, Steps], *,
        chunk: int, max_num_seqs: int, rotation: Rotation | None = None, overlap: bool = True,
    ) -> None:  # fmt: skip
        self.overlap = overlap
        self.demand = demand
        self.memory = memory
        self.chunk = chunk
        self.steps = steps
        self.max_num_seqs = max_num_seqs
        self.rotation = rotation

    @cached_property
    def rounds(self) -> float:
        """Decode steps of a request: the first token comes with its prompt."""
        return max(0.0, self.demand.answer - 1)

    @cached_property
    def batch(self) -> float:
        """Requests that decode at once, on average over their answers."""
        block = self.memory.block_size
        held = self.demand.context + block / 2
        by_memory = max(1.0, self.memory.num_blocks * block / held)
        if self.rotation is not None:
            by_memory = max(by_memory, self.rotation.batch)
        return min(self.max_num_seqs, by_memory, self.demand.num_requests)

    @cached_property
    def stay(self) -> float:
        """Requests that memory holds to their ends."""
        demand, memory = self.demand, self.memory
        return memory.num_blocks * memory.block_size / (demand.prompt + demand.answer)

    @cached_property
    def is_crowded(self) -> bool:
        """Requests that were let in together cannot all stay to their ends: memory is short before,
        so that they come and go one by one, not as a wave."""
        return min(self.max_num_seqs, self.demand.num_requests) > self.stay

    def waves(self, *, longest_first: bool) -> list[Wave]:
        """What decodes together, one after the other, to the end of the job.

        Equal answers stay in waves, of which the last is smaller. Where requests come and go one by
        one, there is always a batch until nobody is left to come in; then it shrinks to nothing
        while the longest answer ends, unless the longest came first.
        """
        demand, batch, rounds = self.demand, self.batch, self.rounds
        left = float(demand.num_requests)
        # Of all replicas the one that has the longest answer is waited for.
        longest = max(rounds, demand.answers[-1] - 1.0)
        if longest == 0:
            return [Wave(min(left, batch), 0.0, left)]  # nobody decodes
        if left <= batch:
            return [Wave(left * rounds / longest, longest, left)]
        together = longest_first and left <= 2 * self.stay
        if demand.is_even and (together or not self.is_crowded):
            # Those that were loaded before a decode phase began stay together, as many as fit to
            # their ends; after that they drift apart as some yield.
            size = max(1.0, min(batch, self.stay)) if self.is_crowded else batch
            full = left // size
            rest = left - full * size
            waves = [Wave(size, full * rounds, full * size, full)]
            return [*waves, Wave(rest, rounds, rest)] if rest else waves
        if longest_first and not demand.is_even:
            length = max(left * rounds / batch, longest)
            return [Wave(left * rounds / length, length, left)]
        to_come = batch * demand.residual
        steady = max(0.0, left * rounds - to_come) / batch
        # The longest of the last batch, or the longest of all, which begins halfway on average.
        last = max(rounds, demand.longest_of(batch) - 1.0, longest - steady / 2)
        return [
            Wave(batch, steady, left, max(1.0, steady / max(1.0, rounds))),
            Wave(min(to_come, left * rounds) / last, last),
        ]

    # -- one layout ------------------------------------------------------------------------------

    def continuous(self) -> Phases:
        """Chunks of prompts beside rows that decode."""
        phases = Phases.of(self.batch, self.rotation)
        steps = self.steps["decode"]
        extra = 1 + self._recomputed() / (self.demand.num_requests * self.demand.prompt)
        waves = self.waves(longest_first=False)
        for number, wave in enumerate(waves):
            num_mixed = self._wave(phases, wave, extra, is_first=number == 0)
        if wave.prompts:
            # Those of the last wave end in the order in which they began.
            rounds = min(self.rounds, num_mixed / wave.times / steps.groups(wave.size))
            steps.rounds(phases.decode, wave.size / 2, rounds)
        return phases

    def _recomputed(self) -> float:
        """Tokens of requests that yield to others and begin again: those that are let in although
        they cannot stay."""
        if not self.is_crowded:
            return 0.0
        demand, memory = self.demand, self.memory
        tokens = memory.num_blocks * memory.block_size
        let_in = min(self.max_num_seqs, demand.num_requests, tokens / demand.prompt)
        return max(0.0, let_in - self.stay) * (demand.prompt + demand.answer / 2)

    def _wave(self, phases: Phases, wave: Wave, extra: float, *, is_first: bool) -> float:
        """From the prompts of a wave to its last tokens, `extra` times the prompts' tokens
        computed. Returns the number of steps with prompts in them."""
        steps, demand = self.steps["decode"], self.demand
        groups = steps.groups(wave.size)
        rows = wave.size / groups
        num_steps = wave.rounds * groups
        tokens = wave.prompts * demand.prompt * extra
        ramp = 0.0
        if is_first and tokens:
            # Nobody decodes when the job begins.
            room = self._room(rows / 2)
            ramp = min(tokens / room, num_steps) / wave.times
            tokens -= ramp * room
            self._mixed(phases, ramp, room, rows / 2)
        num_mixed = tokens / self._room(rows)
        if ramp + num_mixed > num_steps:
            # Prompts are all that limits: rows are those that decode meanwhile.
            rows = min(rows, self.chunk * self.rounds / (demand.prompt + self.rounds))
            num_mixed = tokens / self._room(rows)
            num_steps = ramp + num_mixed
        if num_mixed:
            self._mixed(phases, num_mixed, self._room(rows), rows)
        if ramp + num_mixed and steps.pp > 1:
            # Where prompts begin after steps without, stages behind the first wait for them.
            with_prompts, alone = steps.step(self._room(rows), rows)[1], steps.step(0, rows)[1]
            waits = wave.times * (steps.pp - 1)
            phases.mixed.wait(BUBBLES, waits * max(0.0, with_prompts - alone))
        steps.rounds(phases.decode, rows * groups, (num_steps - ramp - num_mixed) / groups)
        return ramp + num_mixed

    def _room(self, rows: float) -> float:
        """Tokens of prompts that fit a step beside `rows`."""
        return max(self.chunk - rows, self.chunk / 4)

    def _mixed(self, phases: Phases, times: float, chunk: float, rows: float) -> None:
        steps = self.steps["decode"]
        terms, slowest, through = steps.step(chunk, rows)
        # A pipeline has one step more than stages in flight (`SchedulerConfig.most_in_flight`).
        phases.mixed.add(terms, max(slowest, through / (steps.pp + 1)), times)

    # -- two phases ------------------------------------------------------------------------------

    def seesaw(self, to_decode_s: float, to_prefill_s: float) -> Phases:
        """Prompts until the tier is full, then answers until it is drained, and so on."""
        demand, memory = self.demand, self.memory
        decode = self.steps["decode"]
        phases = Phases.of(self.batch, self.rotation)
        per_request = -(-demand.prompt // memory.tier_block_size)
        tier = max(1.0, memory.tier_blocks // per_request)
        first = tier + self.batch
        cycles = 1
        if demand.num_requests > first:
            cycles += math.ceil((demand.num_requests - first) / tier)
        phases.num_transitions = 2 * cycles - 1
        phases.transition_s = cycles * to_decode_s + (cycles - 1) * to_prefill_s
        self._prompts(phases.prefill, cycles)
        if self.rounds == 0:
            phases.num_transitions, phases.transition_s = 0, 0.0
            return phases
        for wave in self.waves(longest_first=True):
            decode.rounds(phases.decode, wave.size, wave.rounds)
        loads_s = demand.num_requests * self._transfer_s(load=True)
        phases.decode.wait(HOST_LINK, max(0.0, loads_s - phases.decode.seconds))
        return phases

    def _prompts(self, into: Spent, cycles: int) -> None:
        """All prompts, through the ring of blocks that hold them until they are stored."""
        demand, memory, steps = self.demand, self.memory, self.steps["prefill"]
        chunk = min(float(self.chunk), demand.num_requests * demand.prompt)
        terms, slowest, through = steps.step(chunk, 0)
        step_s = max(slowest, through / (steps.pp + 1))  # of as many in flight, as in `_mixed`
        num_steps = demand.num_requests * demand.prompt / chunk
        into.add(terms, step_s, num_steps)
        into.wait(BUBBLES, cycles * (through - slowest))
        # A prompt holds its blocks until it has passed all stages and is stored.
        store_s = self._transfer_s(load=False)
        at_once = max(1.0, memory.prefill_blocks // -(-demand.prompt // memory.block_size))
        held_s = math.ceil(demand.prompt / chunk) * slowest + through - slowest
        held_s += self._store_after_s(store_s, slowest)
        ring_s = demand.num_requests * held_s / at_once
        into.wait(BUBBLES, max(0.0, ring_s - into.seconds))
        # It holds blocks of the tier for as long, and until it is loaded; which begins behind the
        # steps in flight. So do those that go through before the decode pool is full.
        in_tier = max(1.0, memory.tier_blocks // -(-demand.prompt // memory.tier_block_size))
        passing = min(float(demand.num_requests), self.batch)
        tier_s = passing * (held_s + through + self._transfer_s(load=True)) / in_tier
        into.wait(BUBBLES, max(0.0, tier_s - into.seconds * passing / demand.num_requests))
        stores_s = demand.num_requests * store_s
        into.wait(HOST_LINK, max(0.0, stores_s - into.seconds))

    def _store_after_s(self, store_s: float, step_s: float) -> float:
        """What of a store of `store_s` comes after the step that completes the KV."""
        if not self.overlap:
            return store_s
        layout, spec = self.steps["prefill"].costs.layout, self.steps["prefill"].costs.spec
        layers = rank_ranges(layout, spec, 0).layers.size
        last = min(1.0, STORE_LAYERS / layers)
        return max(last * store_s, store_s - (1 - last) * step_s)

    def _transfer_s(self, *, load: bool) -> float:
        """Seconds that a rank needs to copy one prompt's KV to the host, or from it."""
        memory = self.memory
        costs = self.steps["decode" if load else "prefill"].costs
        rate = costs.load_bytes_per_s if load else costs.store_bytes_per_s
        block_bytes = memory.block_bytes if load else memory.prefill_block_bytes
        blocks = -(-self.demand.prompt // memory.block_size)
        return blocks * block_bytes / min(rate(rank) for rank in range(costs.layout.num_ranks))
