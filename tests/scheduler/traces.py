"""Random traces for the scheduler, and a driver that plays one against the worker model.

The driver checks every step while it plays, and every answer against the one that the request
would get alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from seesaw.sampling_params import SamplingParams
from seesaw.scheduler import policies
from seesaw.scheduler.output import ModelOutput, SchedulerOutput
from seesaw.scheduler.request import Request
from seesaw.scheduler.scheduler import Scheduler, SchedulerConfig
from tests.scheduler.worker_model import WorkerModel, serial_tokens

EOS = 0
STOP = 1
FLUSH = "flush"


@dataclass(frozen=True)
class Script:
    """One request of a trace. Ticks are turns of the driver's loop."""

    prompt: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    arrival_tick: int
    abort_tick: int | None = None
    """Abort this many ticks after it arrived,"""
    abort_after_tokens: int | None = None
    """or once it has this many tokens,"""
    abort_after_preemption: int | None = None
    """or this many ticks after it first yielded."""
    stop_pair: tuple[int, int] | None = None
    """Two tokens in a row that end it from outside, as a stop string does."""


@dataclass(frozen=True)
class Trace:
    config: SchedulerConfig
    scripts: Sequence[Script]
    vocab_size: int
    delivery_seed: int
    in_order: bool = True
    policy: str = "continuous"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Played:
    outputs: list[SchedulerOutput]
    requests: list[Request]
    num_preemptions: int
    num_cached_tokens: int
    num_discarded_tokens: int
    aborted_as: list[str]


def num_positions(script: Script, max_model_len: int) -> int:
    """Most tokens that prompt and answer can have."""
    room = max_model_len - len(script.prompt)
    most = script.sampling.max_tokens
    return len(script.prompt) + (room if most is None else min(room, most))


def serial_answer(script: Script, trace: Trace) -> tuple[list[int], str, int | str | None]:
    """Tokens, finish_reason and stop_reason of the request alone."""
    sampling = script.sampling
    limit = num_positions(script, trace.config.max_model_len) - len(script.prompt)
    answer = serial_tokens(script.prompt, script.seed, trace.vocab_size, limit)
    for count in range(1, limit + 1):
        token = answer[count - 1]
        if count >= sampling.min_tokens:
            if token == EOS and not sampling.ignore_eos:
                return answer[:count], "stop", None
            if token in sampling.stop_token_ids:
                return answer[:count], "stop", token
        if count < limit and _ends_with(answer[:count], script.stop_pair):
            return answer[:count], "stop", "pair"
    return answer, "length", None


def _ends_with(tokens: Sequence[int], pair: tuple[int, int] | None) -> bool:
    return pair is not None and tuple(tokens[-2:]) == pair


def play(trace: Trace) -> Played:
    player = _Player(trace)
    player.play()
    return player.result()


class _Player:
    def __init__(self, trace: Trace) -> None:
        config = trace.config
        self.trace = trace
        self.rng = random.Random(trace.delivery_seed)
        self.scheduler = Scheduler(config, policies.make(trace.policy, trace.options))
        self.worker = WorkerModel(
            config.num_blocks, config.block_size, config.num_layers, trace.vocab_size
        )
        self.outputs: list[SchedulerOutput] = []
        self.pending: list[ModelOutput] = []
        self.requests: dict[int, Request] = {}
        self.arrived_at: dict[int, int] = {}
        self.yielded_at: dict[int, int] = {}
        self.aborted: dict[int, str] = {}
        self.ended: list[str] = []
        self.tick = 0

    # -- the loop ---------------------------------------------------------------------------------

    def play(self) -> None:
        last_arrival = max((script.arrival_tick for script in self.trace.scripts), default=0)
        most_ticks = last_arrival + self._most_ticks()
        while len(self.requests) < len(self.trace.scripts) or self.scheduler.num_unfinished:
            self._arrive()
            self._abort()
            self._turn()
            self.tick += 1
            assert self.tick <= most_ticks, f"not done after {most_ticks} ticks: starved or stuck"
        while self.pending:
            self._deliver()
        self._check_end()

    def _most_ticks(self) -> int:
        """The oldest running request never yields under `continuous` and moves at least once in
        each round of steps; a step takes up to two ticks, and half of the ticks may deliver."""
        config = self.trace.config
        chunk = self.trace.options.get("max_prefill_chunk") or config.max_num_batched_tokens
        steps = 0
        for script in self.trace.scripts:
            most = num_positions(script, config.max_model_len)
            steps += -(-most // min(chunk, config.max_num_batched_tokens))
            steps += most - len(script.prompt)
        ticks = 2 * (steps * (config.max_steps_in_flight + 1) + 10)
        return ticks if self.trace.policy == "continuous" else 50 * ticks

    def _arrive(self) -> None:
        for index, script in enumerate(self.trace.scripts):
            if index in self.requests or script.arrival_tick > self.tick:
                continue
            self.scheduler.validate(len(script.prompt), script.sampling)
            request = self.make_request(str(index), script)
            self.scheduler.add(request)
            self.requests[index], self.arrived_at[index] = request, self.tick

    def make_request(self, request_id: str, script: Script) -> Request:
        return Request(
            request_id,
            script.prompt,
            script.sampling,
            seed=script.seed,
            eos_token_ids=(EOS,),
            max_model_len=self.trace.config.max_model_len,
        )

    def _abort(self) -> None:
        for index, request in self.requests.items():
            if request.finish_reason is not None:
                continue
            script = self.trace.scripts[index]
            if request.num_preemptions:
                self.yielded_at.setdefault(index, self.tick)
            due = (
                (script.abort_tick is not None
                 and self.tick >= self.arrived_at[index] + script.abort_tick)
                or (script.abort_after_tokens is not None
                    and request.num_output_tokens >= script.abort_after_tokens)
                or (script.abort_after_preemption is not None and index in self.yielded_at
                    and self.tick >= self.yielded_at[index] + script.abort_after_preemption)
            )  # fmt: skip
            if due:
                self.aborted[index] = request.status.value + "+" * (request.num_preemptions > 0)
                assert self.scheduler.finish(request.request_id, "abort") is request
                assert self.scheduler.finish(request.request_id, "abort") is None, "ended twice"
                self.ended.append(request.request_id)

    def _turn(self) -> None:
        """Issue a step or deliver one, as an engine with threads might."""
        in_flight = len(self.pending)
        assert self.scheduler.num_in_flight == in_flight
        if in_flight == 0 or self.rng.random() < 0.6:
            step = self.scheduler.schedule()
            if step is not None:
                assert in_flight < self.trace.config.max_steps_in_flight, "too many in flight"
                self._issue(step)
                return
            if in_flight == 0:
                assert not self.scheduler.num_unfinished, "deadlock: nothing in flight, no step"
                return
        self._deliver()

    def _issue(self, step: SchedulerOutput) -> None:
        config = self.trace.config
        assert 0 < step.num_tokens <= config.max_num_batched_tokens
        assert sum(len(lane.rows) for lane in step.lanes) <= config.max_num_seqs
        for row in (row for lane in step.lanes for row in lane.rows):
            most = num_positions(self.trace.scripts[int(row.request_id)], config.max_model_len)
            assert row.token_start + row.num_tokens < most, f"{row} runs past the last token"
        self.outputs.append(step)
        self.pending.append(self.worker.execute(step))

    def _deliver(self) -> None:
        index = 0 if self.trace.in_order else self.rng.randrange(len(self.pending))
        update = self.scheduler.update(self.pending.pop(index))
        assert len({id(r) for r in update.advanced}) == len(update.advanced)
        ended = [r for r in update.advanced if r.finish_reason is not None]
        assert update.finished == ended, "finished must be those that ended, in order"
        self.ended += [request.request_id for request in update.finished]
        for request in update.advanced:
            pair = self.trace.scripts[int(request.request_id)].stop_pair
            answer = request.output_token_ids
            # Several tokens may have become known at once.
            hit = any(_ends_with(answer[:end], pair) for end in range(2, len(answer) + 1))
            if hit and self.scheduler.finish(request.request_id, "stop", "pair") is not None:
                self.ended.append(request.request_id)

    # -- at the end -------------------------------------------------------------------------------

    def _check_end(self) -> None:
        scheduler, stats = self.scheduler, self.scheduler.stats
        scheduler.check()
        assert scheduler.num_in_flight == scheduler.num_running == scheduler.num_waiting == 0
        assert scheduler.kv_usage == 0, "blocks leaked"
        assert sorted(self.ended) == sorted(r.request_id for r in self.requests.values())
        for index, request in self.requests.items():
            self._check_answer(index, request)
        kept = sum(request.num_output_tokens for request in self.requests.values())
        assert stats.num_discarded_tokens == self.worker.num_drawn - kept
        assert stats.num_steps == len(self.outputs)
        assert stats.num_scheduled_tokens == sum(step.num_tokens for step in self.outputs)
        first = self.worker.first_start
        if self.trace.policy == "continuous":  # others may admit now and run later
            cached = {r.request_id: r.num_cached_tokens for r in self.requests.values()}
            assert {request_id: cached[request_id] for request_id in first} == first
            assert stats.num_cached_tokens == sum(first.values()) == sum(cached.values())
        assert stats.num_preemptions >= self.worker.num_preempted
        self._check_forgotten()

    def _check_answer(self, index: int, request: Request) -> None:
        answer, reason, stop_reason = serial_answer(self.trace.scripts[index], self.trace)
        got = request.output_token_ids
        assert request.tokens[: request.num_prompt] == list(self.trace.scripts[index].prompt)
        if index in self.aborted:
            assert request.finish_reason == "abort"
            assert got == answer[: len(got)]
        elif stop_reason == "pair":
            # What became known together with the pair is there too; the caller cuts it off.
            assert got[: len(answer)] == answer
            assert got == answer or not self.trace.in_order
        else:
            ended = (request.finish_reason, request.stop_reason)
            assert (got, ended) == (answer, (reason, stop_reason))

    def _check_forgotten(self) -> None:
        """Workers are told with the next step, so one more request shows what they still know."""
        sampling = SamplingParams(max_tokens=1)
        self.scheduler.add(self.make_request(FLUSH, Script((2,), sampling, 0, 0)))
        step = self.scheduler.schedule()
        assert step is not None
        self.scheduler.update(self.worker.execute(step))
        assert set(self.worker.requests) == {FLUSH}, "a worker still knows ended requests"

    def result(self) -> Played:
        return Played(
            self.outputs,
            list(self.requests.values()),
            self.scheduler.stats.num_preemptions,
            self.scheduler.stats.num_cached_tokens,
            self.scheduler.stats.num_discarded_tokens,
            list(self.aborted.values()),
        )


# -- random traces --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Profile:
    """What kind of traces: ranges are inclusive."""

    requests: tuple[int, int] = (1, 8)
    prompt_len: tuple[int, int] = (1, 20)
    max_tokens: tuple[int, int] = (1, 16)
    block_size: tuple[int, ...] = (1, 2, 4)
    budget: tuple[int, int] = (1, 40)
    max_num_seqs: tuple[int, int] = (1, 8)
    spare_blocks: tuple[int, int] = (0, 40)
    """Blocks beyond what the largest request needs."""
    in_flight: tuple[int, int] = (1, 4)
    shared_prompts: float = 0.5
    abort_rate: float = 0.2
    in_order: float = 0.7
    vocab_size: tuple[int, ...] = (3, 8, 40)
    policy: str = "continuous"


PROFILES = {
    "mixed": Profile(),
    "tiny-pool": Profile(spare_blocks=(0, 3), budget=(4, 40), abort_rate=0.1, vocab_size=(40,)),
    "tiny-budget": Profile(budget=(1, 4), prompt_len=(1, 30)),
    "shared": Profile(shared_prompts=1.0, spare_blocks=(0, 12), prompt_len=(4, 24)),
    "aborts": Profile(abort_rate=0.8, spare_blocks=(0, 6), in_flight=(2, 4)),
    "shuffled": Profile(in_order=0.0, in_flight=(2, 4), spare_blocks=(0, 10)),
    "short": Profile(max_tokens=(1, 2), prompt_len=(1, 6), requests=(4, 16)),
    "chaos": Profile(policy="tests.scheduler.chaos:Chaos", spare_blocks=(0, 12)),
}


def random_trace(rng: random.Random, profile: Profile) -> Trace:
    vocab_size = rng.choice(profile.vocab_size)
    max_model_len = profile.prompt_len[1] + rng.randint(1, profile.max_tokens[1] + 4)
    stems = [[rng.randrange(vocab_size) for _ in range(profile.prompt_len[1])] for _ in range(2)]
    count = rng.randint(*profile.requests)
    busy = rng.choice((0, 3, 30))
    scripts = [
        _random_script(rng, profile, vocab_size, stems, rng.randint(0, busy * index))
        for index in range(count)
    ]
    block_size = rng.choice(profile.block_size)
    need = max(-(-(num_positions(script, max_model_len) - 1) // block_size) for script in scripts)
    config = SchedulerConfig(
        num_blocks=max(need, 1) + rng.randint(*profile.spare_blocks),
        block_size=block_size,
        num_layers=rng.randint(1, 3),
        max_model_len=max_model_len,
        max_num_seqs=rng.randint(*profile.max_num_seqs),
        max_num_batched_tokens=rng.randint(*profile.budget),
        max_steps_in_flight=rng.randint(*profile.in_flight),
        enable_prefix_caching=rng.random() < 0.85,
        debug=True,
    )
    if profile.policy == "continuous":
        options: dict[str, Any] = {
            "max_prefill_chunk": rng.choice((0, 0, 1, 3, 7)),
            "block_watermark": rng.choice((0.0, 0.01, 0.3)),
        }
    else:
        options = {"seed": rng.randrange(2**32)}
    return Trace(
        config,
        scripts,
        vocab_size,
        delivery_seed=rng.randrange(2**32),
        in_order=rng.random() < profile.in_order,
        policy=profile.policy,
        options=options,
    )


def _random_script(
    rng: random.Random, profile: Profile, vocab_size: int, stems: list[list[int]], arrival: int
) -> Script:
    prompt = [rng.randrange(vocab_size) for _ in range(rng.randint(*profile.prompt_len))]
    if rng.random() < profile.shared_prompts:
        keep = rng.randint(0, len(prompt))
        prompt[:keep] = rng.choice(stems)[:keep]
    max_tokens = None if rng.random() < 0.1 else rng.randint(*profile.max_tokens)
    aborts: dict[str, int] = {}
    if rng.random() < profile.abort_rate:
        kind = rng.choice(("abort_tick", "abort_after_tokens", "abort_after_preemption"))
        aborts[kind] = rng.randint(0, 25 if kind == "abort_tick" else 5)
    return Script(
        tuple(prompt),
        SamplingParams(
            max_tokens=max_tokens,
            min_tokens=rng.choice((0, 0, 1, 5)) if max_tokens is None or max_tokens >= 5 else 0,
            ignore_eos=rng.random() < 0.3,
            stop_token_ids=rng.choice(((), (), (STOP,), (EOS, STOP))),
        ),
        seed=rng.randrange(2**32),
        arrival_tick=arrival,
        stop_pair=(rng.randrange(vocab_size), rng.randrange(vocab_size))
        if rng.random() < 0.2
        else None,
        **aborts,
    )
