"""How long a job takes in one candidate (layouts, policy, chunk, memory): closed forms.

Owns what the scheduler's schedules add up to: waves of answers, chunks beside them, phases and
their transitions, pipeline bubbles, tails. What one step costs is the cost model's business; step
by step truth is `seesaw.simulate`, against which these forms are tested.

Source of the phases: Seesaw (MLSys 2025), sections 4.1 and 4.2; terms it leaves out are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Self

from seesaw.families.spec import ModelSpec
from seesaw.layout.parallel import ParallelLayout
from seesaw.plan.cost_model import CostModel, StageTime
from seesaw.plan.machine import Machine
from seesaw.plan.transition import Moved
from seesaw.plan.work import Work, WorkCounter
from seesaw.plan.workload import Lengths

if TYPE_CHECKING:
    from seesaw.plan.memory import MemoryPlan

WORDS = {
    "weights_s": "weight reads",
    "matmul_s": "matrix products",
    "attention_s": "attention",
    "kv_s": "KV reads",
    "all_reduce_s": "all-reduce",
    "elementwise_s": "element-wise operations",
    "overhead_s": "launches and calls",
}
BUBBLES, HOST_LINK = "pipeline bubbles", "host link"


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The requests of one job in the moments that its time depends on; tokens."""

    num_requests: int
    prompt: float
    answer: float
    answer_deviation: float
    longest_answer: int
    longest: int
    """Prompt and answer of one request together."""
    prompt_square: float
    """Mean of the squared prompt, which attention over prompts follows."""

    @classmethod
    def of(cls, lengths: Sequence[Lengths], num_requests: int | None = None) -> Self:
        """Of a sample of lengths that stands for `num_requests` (default: as many as it has)."""
        count = len(lengths)
        answer = sum(one.answer for one in lengths) / count
        spread = sum((one.answer - answer) ** 2 for one in lengths) / count
        return cls(
            num_requests=num_requests or count,
            prompt=sum(one.prompt for one in lengths) / count,
            answer=answer,
            answer_deviation=math.sqrt(spread),
            longest_answer=max(one.answer for one in lengths),
            longest=max(one.prompt + one.answer for one in lengths),
            prompt_square=sum(one.prompt**2 for one in lengths) / count,
        )


def name_of(prefill: ParallelLayout, decode: ParallelLayout) -> str:
    """`pp8 -> tp8`, or `tp8` where both are one."""
    return decode.short if prefill == decode else f"{prefill.short} -> {decode.short}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A job in one candidate. `decode_batch` is of one replica. `prefill_s` and `decode_s` are
    steps of prompts alone and answers alone, `mixed_s` steps of both; seconds add up to
    `elapsed_s`. Rates are of the whole machine; `tokens_per_s` counts prompts and answers.
    """

    prefill: ParallelLayout
    decode: ParallelLayout
    policy: str
    max_num_batched_tokens: int
    memory: MemoryPlan
    decode_batch: float
    prefill_s: float
    decode_s: float
    mixed_s: float
    transition_s: float
    num_transitions: int
    elapsed_s: float
    requests_per_s: float
    tokens_per_s: float
    output_tokens_per_s: float
    prefill_bottleneck: str
    decode_bottleneck: str

    @property
    def is_split(self) -> bool:
        return self.prefill != self.decode

    @property
    def name(self) -> str:
        return name_of(self.prefill, self.decode)


@dataclass(slots=True)
class Spent:
    """Seconds of one kind of step, and by what took them."""

    seconds: float
    terms: dict[str, float]

    @classmethod
    def nothing(cls) -> Self:
        return cls(0.0, {})

    def add(self, terms: StageTime, seconds: float, times: float) -> None:
        """`times` steps of `seconds` each, of which the slowest stage computes by `terms`."""
        for field in fields(terms):
            self.count(WORDS[field.name], times * getattr(terms, field.name))
        self.count(BUBBLES, times * (seconds - terms.total_s))
        self.seconds += times * seconds

    def wait(self, what: str, seconds: float) -> None:
        self.count(what, seconds)
        self.seconds += seconds

    def count(self, what: str, seconds: float) -> None:
        self.terms[what] = self.terms.get(what, 0.0) + seconds

    @property
    def bottleneck(self) -> str:
        if self.seconds <= 0:
            return ""
        return max(self.terms, key=lambda what: self.terms[what])


class Steps:
    """What steps of one layout cost for a demand."""

    def __init__(self, costs: CostModel, counter: WorkCounter, demand: Demand, chunk: int) -> None:
        self.costs = costs
        self.pp = costs.layout.pp
        self._demand = demand
        prompt = max(1, round(demand.prompt))
        size = min(prompt, chunk)
        ends = [*range(size, prompt, size), prompt]
        of_prompt = counter.count([(min(size, end), end, False) for end in ends])
        # Long prompts count more than the mean one.
        longer = demand.prompt_square / demand.prompt**2
        self._pairs = of_prompt.pairs / prompt * longer
        self._keys = of_prompt.chunk_keys / prompt * longer
        context = round(demand.prompt + demand.answer / 2)
        self._decode_keys = counter.count([(1, context, True)]).decode_keys

    def work(self, chunk: float, rows: float) -> Work:
        """Of a step with `chunk` tokens of prompts and `rows` that decode."""
        prompts = chunk / self._demand.prompt
        return Work(
            num_tokens=max(1, round(chunk + rows)),
            num_rows=max(1, round(rows + math.ceil(prompts))),
            num_sampled=round(rows + prompts),
            pairs=chunk * self._pairs,
            chunk_keys=chunk * self._keys,
            decode_keys=rows * self._decode_keys,
        )

    def step(self, chunk: float, rows: float) -> tuple[StageTime, float, float]:
        """(terms of the slowest stage, its seconds, seconds through all stages)."""
        work = self.work(chunk, rows)
        stages = self.costs.stages_s(work)
        slowest = max(range(self.pp), key=stages.__getitem__)
        through = sum(stages)
        if self.pp > 1:
            through += (self.pp - 1) * self.costs.send_s(work.num_tokens)
        return self.costs.stage(slowest, work), stages[slowest], through

    def groups(self, requests: float) -> float:
        """Of rows that are in different stages at once."""
        return min(float(self.pp), max(1.0, requests))

    def rounds(self, into: Spent, requests: float, rounds: float) -> None:
        """Each of `requests` decodes a token in each of `rounds`."""
        groups = self.groups(requests)
        terms, slowest, through = self.step(0, requests / groups)
        into.add(terms, max(slowest, through / groups), rounds * groups)


@dataclass(slots=True)
class Phases:
    """What the phases of a job add up to."""

    prefill: Spent
    decode: Spent
    mixed: Spent
    num_transitions: int
    transition_s: float
    decode_batch: float

    @classmethod
    def of(cls, decode_batch: float) -> Self:
        return cls(Spent.nothing(), Spent.nothing(), Spent.nothing(), 0, 0.0, decode_batch)

    @property
    def elapsed_s(self) -> float:
        spent = self.prefill.seconds + self.decode.seconds + self.mixed.seconds
        return spent + self.transition_s


class Wave(NamedTuple):
    """`size` requests that decode together, `times` one after the other; `prompts` requests come
    with it."""

    size: float
    times: float
    prompts: float


class Replica:
    """One replica with `demand` of its own, in layouts of one replica."""

    def __init__(
        self, demand: Demand, memory: MemoryPlan, steps: Mapping[str, Steps], *,
        chunk: int, max_num_seqs: int,
    ) -> None:  # fmt: skip
        self.demand = demand
        self.memory = memory
        self.chunk = chunk
        self.steps = steps
        self.max_num_seqs = max_num_seqs

    @cached_property
    def rounds(self) -> float:
        """Decode steps of a request: the first token comes with its prompt."""
        return max(0.0, self.demand.answer - 1)

    @cached_property
    def batch(self) -> float:
        """Requests that decode at once, on average over their answers."""
        block = self.memory.block_size
        held = self.demand.prompt + self.demand.answer / 2 + block / 2
        by_memory = max(1.0, self.memory.num_blocks * block / held)
        return min(self.max_num_seqs, by_memory, self.demand.num_requests)

    @cached_property
    def is_crowded(self) -> bool:
        """Requests that were let in together cannot all stay to their ends: memory is short before,
        so that they come and go one by one, not as a wave."""
        demand, memory = self.demand, self.memory
        together = min(self.max_num_seqs, demand.num_requests)
        ends = together * (demand.prompt + demand.answer)
        return ends > memory.num_blocks * memory.block_size

    def waves(self) -> list[Wave]:
        """What decodes together, one after the other, to the end of the job.

        Equal requests stay in waves, of which the last is smaller. Where they come and go one by
        one, there is always a batch until nobody is left to come in; then it shrinks to nothing
        within one answer.
        """
        left, batch = float(self.demand.num_requests), self.batch
        if left <= batch:
            return [Wave(left, 1.0, left)]
        if self.is_crowded:
            return [Wave(batch, left / batch - 0.5, left), Wave(batch / 2, 1.0, 0.0)]
        full = left // batch
        rest = left - full * batch
        waves = [Wave(batch, full, full * batch)]
        return [*waves, Wave(rest, 1.0, rest)] if rest else waves

    # -- one layout ------------------------------------------------------------------------------

    def continuous(self) -> Phases:
        """Chunks of prompts beside rows that decode."""
        phases = Phases.of(self.batch)
        extra = 1 + self._recomputed() / (self.demand.num_requests * self.demand.prompt)
        waves = self.waves()
        steps = self.steps["decode"]
        for number, wave in enumerate(waves):
            num_mixed = self._wave(phases, wave, extra, is_first=number == 0)
        if not self.is_crowded or len(waves) == 1:
            # Those of the last wave end in the order in which they began.
            groups = steps.groups(wave.size)
            rounds = min(self.rounds, num_mixed / max(1.0, wave.times) / groups)
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
        stay = tokens / (demand.prompt + demand.answer)
        return max(0.0, let_in - stay) * (demand.prompt + demand.answer / 2)

    def _wave(self, phases: Phases, wave: Wave, extra: float, *, is_first: bool) -> float:
        """From the prompts of a wave to its last tokens, `extra` times the prompts' tokens
        computed. Returns the number of steps with prompts in them."""
        steps, demand = self.steps["decode"], self.demand
        groups = steps.groups(wave.size)
        rows = wave.size / groups
        each = self.rounds * groups
        num_steps = each * wave.times
        tokens = wave.prompts * demand.prompt * extra
        ramp = 0.0
        if is_first and tokens:
            # Nobody decodes when the job begins.
            room = self._room(rows / 2)
            ramp = min(tokens / max(1.0, wave.times) / room, each)
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
        phases.mixed.add(terms, max(slowest, through / (steps.pp + 1)), times)

    # -- two phases ------------------------------------------------------------------------------

    def seesaw(self, to_decode_s: float, to_prefill_s: float) -> Phases:
        """Prompts until the tier is full, then answers until it is drained, and so on."""
        demand, memory = self.demand, self.memory
        decode = self.steps["decode"]
        phases = Phases.of(self.batch)
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
        for wave in self.waves():
            decode.rounds(phases.decode, wave.size, self.rounds * wave.times)
        loads_s = demand.num_requests * self._transfer_s(load=True)
        phases.decode.wait(HOST_LINK, max(0.0, loads_s - phases.decode.seconds))
        return phases

    def _prompts(self, into: Spent, cycles: int) -> None:
        """All prompts, through the ring of blocks that hold them until they are stored."""
        demand, memory, steps = self.demand, self.memory, self.steps["prefill"]
        chunk = min(float(self.chunk), demand.num_requests * demand.prompt)
        terms, slowest, through = steps.step(chunk, 0)
        step_s = max(slowest, through / (steps.pp + 1))
        num_steps = demand.num_requests * demand.prompt / chunk
        into.add(terms, step_s, num_steps)
        into.wait(BUBBLES, cycles * (through - slowest))
        # A prompt holds its blocks until it has passed all stages and is stored.
        store_s = self._transfer_s(load=False)
        at_once = max(1.0, memory.prefill_blocks // -(-demand.prompt // memory.block_size))
        held_s = math.ceil(demand.prompt / chunk) * slowest + through - slowest + store_s
        ring_s = demand.num_requests * held_s / at_once
        into.wait(BUBBLES, max(0.0, ring_s - into.seconds))
        stores_s = demand.num_requests * store_s
        into.wait(HOST_LINK, max(0.0, stores_s - into.seconds))

    def _transfer_s(self, *, load: bool) -> float:
        """Seconds that a rank needs to copy one prompt's KV to the host, or from it."""
        memory = self.memory
        costs = self.steps["decode" if load else "prefill"].costs
        rate = costs.load_bytes_per_s if load else costs.store_bytes_per_s
        block_bytes = memory.block_bytes if load else memory.prefill_block_bytes
        blocks = -(-self.demand.prompt // memory.block_size)
        return blocks * block_bytes / min(rate(rank) for rank in range(costs.layout.num_ranks))


class Estimator:
    """Estimates of one demand on one machine. `kv_bytes` of an element of KV, where it is not
    `dtype`'s."""

    def __init__(
        self, spec: ModelSpec, machine: Machine, demand: Demand, dtype: str, *,
        max_num_seqs: int, kv_bytes: int | None = None,
    ) -> None:  # fmt: skip
        self.spec = spec
        self.machine = machine
        self.demand = demand
        self.dtype = dtype
        self.kv_bytes = kv_bytes
        self.max_num_seqs = max_num_seqs
        self._counter = WorkCounter(spec)
        self._costs: dict[tuple[ParallelLayout, int], CostModel] = {}
        self._steps: dict[tuple[ParallelLayout, int, int, int], Steps] = {}

    def estimate(
        self, prefill: ParallelLayout, decode: ParallelLayout, policy: str, chunk: int,
        memory: MemoryPlan, moved: tuple[Moved, Moved] | None,
    ) -> Estimate:  # fmt: skip
        """Both layouts with all their replicas. `moved`: what a change to decode and back moves,
        None where the layouts are one."""
        dp = decode.dp
        demand = replace(self.demand, num_requests=math.ceil(self.demand.num_requests / dp))
        # Requests go to replicas in turn, so the slowest of them ends last.
        found = max(
            (
                self._replica(prefill.replica, decode.replica, start, chunk, memory, demand, moved)
                for start in self._starts(decode)
            ),
            key=lambda phases: phases.elapsed_s,
        )
        elapsed_s = found.elapsed_s
        requests_per_s = self.demand.num_requests / elapsed_s
        output = requests_per_s * self.demand.answer
        answers = found.decode if found.decode.seconds else found.mixed
        prompts = found.prefill if found.prefill.seconds else found.mixed
        return Estimate(
            prefill=prefill,
            decode=decode,
            policy=policy,
            max_num_batched_tokens=chunk,
            memory=memory,
            decode_batch=found.decode_batch,
            prefill_s=found.prefill.seconds,
            decode_s=found.decode.seconds,
            mixed_s=found.mixed.seconds,
            transition_s=found.transition_s,
            num_transitions=found.num_transitions,
            elapsed_s=elapsed_s,
            requests_per_s=requests_per_s,
            tokens_per_s=output + requests_per_s * self.demand.prompt,
            output_tokens_per_s=output,
            prefill_bottleneck=prompts.bottleneck,
            decode_bottleneck=answers.bottleneck,
        )

    def _starts(self, layout: ParallelLayout) -> list[int]:
        """First ranks of the replicas that differ in their devices."""
        size = layout.replica.num_ranks
        found: dict[tuple[str, ...], int] = {}
        for start in range(0, layout.num_ranks, size):
            kinds = tuple(device.slug for device in self.machine.devices[start : start + size])
            found.setdefault(kinds, start)
        return list(found.values())

    def _replica(
        self, prefill: ParallelLayout, decode: ParallelLayout, start: int, chunk: int,
        memory: MemoryPlan, demand: Demand, moved: tuple[Moved, Moved] | None,
    ) -> Phases:  # fmt: skip
        steps = {
            "prefill": self._get_steps(prefill, start, chunk, demand),
            "decode": self._get_steps(decode, start, chunk, demand),
        }
        replica = Replica(demand, memory, steps, chunk=chunk, max_num_seqs=self.max_num_seqs)
        if memory.tier_blocks == 0:
            return replica.continuous()
        costs = steps["decode"].costs
        to_decode_s, to_prefill_s = (
            max(costs.transition_s(rank, sources) for rank, sources in enumerate(one))
            for one in moved or ([{}], [{}])
        )
        return replica.seesaw(to_decode_s, to_prefill_s)

    def _get_steps(self, layout: ParallelLayout, start: int, chunk: int, demand: Demand) -> Steps:
        key = (layout, start, chunk, demand.num_requests)
        if key not in self._steps:
            if (layout, start) not in self._costs:
                part = self.machine.part(start, layout.num_ranks)
                self._costs[layout, start] = CostModel(
                    self.spec, part, layout, self.dtype, kv_bytes=self.kv_bytes
                )
            costs = self._costs[layout, start]
            self._steps[key] = Steps(costs, self._counter, demand, chunk)
        return self._steps[key]
