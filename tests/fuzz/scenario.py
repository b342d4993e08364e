"""What one seed means: layouts, sizes, policy, requests with what happens to them, and what goes
wrong with the ranks. Plain data; the same seed is the same scenario.

Sizes and requests come from the scheduler's own random traces (`tests/scheduler/traces.py`), whose
ticks are read as TICK_S of the fake clock; a step of a rank takes about one.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from seesaw.families import ModelSpec, spec_from_hf
from seesaw.layout.parallel import ParallelLayout
from seesaw.sampling_params import SamplingParams
from seesaw.scheduler import policies
from seesaw.scheduler.config import SchedulerConfig
from tests.scheduler.traces import (
    POLICY_OPTIONS,
    PROFILES,
    TIER_PROFILES,
    Profile,
    Script,
    Trace,
    random_trace,
    with_policy,
)

FaultKind = Literal[
    "killed", "ended", "failed", "failed copy", "frozen", "hung", "killed at start", "left"
]
"""SIGKILL; an exit without a word; an error in a step or in a copy, told before the end; SIGSTOP; a
step that never ends though the process answers; SIGKILL while weights are loaded; and no fault of
a rank: the caller shuts the engine down while it works."""

TICK_S = 0.1

FIRST_CHAR = 0x4100
# Lanes run in the engine's own process, where no ranks can be put in their place.
PROFILE_OF = {
    f"one layout, {name}": profile
    for name, profile in (
        *PROFILES.items(),
        *((policy, with_policy(PROFILES["tiny-pool"], policy)) for policy in POLICY_OPTIONS),
    )
    if policies.num_lanes(profile.policy) == 1
} | {f"two phases, {name}": profile for name, profile in TIER_PROFILES.items()}

SPEC: ModelSpec = spec_from_hf(
    {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 64,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,  # two ranks hold one and two of them, four share some
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "float32",
        "eos_token_id": 0,
    }
)


@dataclass(frozen=True)
class Asked:
    """One request of a caller, and when it comes and is aborted, in seconds of the clock."""

    request_id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    stream: bool
    arrival_s: float
    abort_s: float | None = None
    """After its arrival,"""
    abort_after_tokens: int | None = None
    """or once a streamed output has so many."""


@dataclass(frozen=True)
class Fault:
    """Befalls `rank` when the engine of this scenario, the first, second, ..., has sent so many
    steps to its replica, and a random time later."""

    kind: FaultKind
    rank: int
    after_steps: int

    def __str__(self) -> str:
        if self.kind == "left":
            return f"the caller leaves after step {self.after_steps}"
        return f"rank {self.rank} {self.kind} after step {self.after_steps}"


@dataclass(frozen=True)
class Pace:
    """Mean seconds of what ranks do and messages take, and who is slow."""

    step_s: float
    message_s: float
    copy_s: float
    slow_ranks: tuple[int, ...]
    slow_times: float


@dataclass(frozen=True)
class Scenario:
    seed: int
    profile: str
    prefill: ParallelLayout
    decode: ParallelLayout
    config: SchedulerConfig
    policy: str
    options: dict[str, object]
    vocab_size: int
    engine_seed: int
    requests: Sequence[Asked]
    pace: Pace
    faults: Sequence[Fault]
    """Of the first engine, the second, ...; the engine after them has none."""
    keep_ranks: bool
    """Worker processes are the caller's, and used again by the next engine."""
    settles: bool
    """The caller waits for what is in flight when all answers are there."""

    @property
    def layouts_differ(self) -> bool:
        return self.prefill != self.decode

    @property
    def is_at_once(self) -> bool:
        """All requests are there from the begin."""
        return all(asked.arrival_s == 0 for asked in self.requests)

    def describe(self) -> str:
        """In words, a line for each kind of thing."""
        config, tier = self.config, self.config.tier
        layouts = str(self.decode.short)
        if self.layouts_differ:
            layouts = f"{self.prefill.short} -> {self.decode.short}"
        blocks = f"{config.num_blocks} blocks of {config.block_size} tokens"
        if tier is not None:
            blocks += (
                f", {tier.prefill_blocks} for prompts, {tier.tier_blocks} of "
                f"{tier.tier_block_size} tokens in the tier"
            )
        lines = [
            f"seed {self.seed} ({self.profile}): dp{self.decode.dp} of {layouts}, policy "
            f"{self.policy} {self.options}",
            f"{blocks}; {config.max_num_batched_tokens} tokens and {config.max_num_seqs} rows a "
            f"step, {config.max_steps_in_flight} steps in flight, prefixes "
            f"{'shared' if config.enable_prefix_caching else 'not shared'}",
            f"{self.pace}; ranks are {'kept' if self.keep_ranks else 'the engines own'}",
        ]
        lines += [f"{index}. engine: {fault}" for index, fault in enumerate(self.faults, 1)]
        lines += [
            f"{asked.request_id}: {len(asked.prompt)} tokens at {asked.arrival_s:g} s, "
            f"{_told(asked.sampling)}{' streamed' * asked.stream}"
            + (f", aborted after {asked.abort_s:g} s" if asked.abort_s is not None else "")
            + (
                f", aborted at {asked.abort_after_tokens} tokens"
                if asked.abort_after_tokens is not None
                else ""
            )
            for asked in self.requests
        ]
        return "\n".join(lines)


def _told(sampling: SamplingParams) -> str:
    """What of it differs from the defaults."""
    plain = SamplingParams()
    names = SamplingParams.__dataclass_fields__
    given = {n: v for n in names if (v := getattr(sampling, n)) != getattr(plain, n)}
    return " ".join(f"{name}={value!r}" for name, value in given.items())


# -- random ones ----------------------------------------------------------------------------------

PROFILE_NAMES = sorted(PROFILE_OF)


def random_scenario(seed: int, *, with_faults: bool = True) -> Scenario:
    rng = random.Random(seed)
    name = rng.choice(PROFILE_NAMES)
    profile = PROFILE_OF[name]
    trace = random_trace(rng, profile)
    prefill, decode = _random_layouts(rng, profile)
    requests = [
        _random_request(rng, index, script, trace) for index, script in enumerate(trace.scripts)
    ]
    num_ranks = decode.num_ranks
    return Scenario(
        seed=seed,
        profile=name,
        prefill=prefill,
        decode=decode,
        config=_of_layouts(trace.config, prefill, decode, debug=rng.random() < 0.3),
        policy=trace.policy,
        options=trace.options,
        vocab_size=trace.vocab_size,
        engine_seed=rng.randrange(1000),
        requests=requests,
        pace=_random_pace(rng, num_ranks),
        faults=_random_faults(rng, num_ranks) if with_faults and rng.random() < 0.4 else [],
        keep_ranks=rng.random() < 0.5 or num_ranks == 1,  # else there is no process
        settles=rng.random() < 0.7,
    )


def _random_layouts(rng: random.Random, profile: Profile) -> tuple[ParallelLayout, ParallelLayout]:
    """Over 1 to 4 ranks, in 1 to 3 replicas; both the same without a tier, and at times with."""
    size, dp = rng.choice((1, 2, 2, 2, 3, 4, 4)), rng.choice((1, 1, 1, 2, 3))
    stages = [pp for pp in (1, 2, 3, 4) if size % pp == 0]
    prefill, decode = (
        ParallelLayout(dp=dp, tp=size // pp, pp=pp, stages=_random_stages(rng, pp))
        for pp in rng.choices(stages, k=2)
    )
    return (prefill, decode) if profile.with_tier else (decode, decode)


def _random_stages(rng: random.Random, pp: int) -> tuple[int, ...]:
    """Layers of each, at times given."""
    if pp == 1 or rng.random() < 0.7:
        return ()
    layers = SPEC.num_hidden_layers
    cuts = [0, *sorted(rng.sample(range(1, layers), pp - 1)), layers]
    return tuple(stop - start for start, stop in itertools.pairwise(cuts))


def _of_layouts(
    config: SchedulerConfig, prefill: ParallelLayout, decode: ParallelLayout, *, debug: bool
) -> SchedulerConfig:
    tier = config.tier
    if tier is not None:
        tier = replace(tier, prefill_stages=prefill.pp, decode_stages=decode.pp)
    return replace(
        config,
        num_layers=SPEC.num_hidden_layers,
        num_stages=decode.pp,
        tier=tier,
        debug=debug,
    )


def _random_pace(rng: random.Random, num_ranks: int) -> Pace:
    slow = tuple(rank for rank in range(num_ranks) if rng.random() < 0.1)
    return Pace(
        step_s=TICK_S,
        message_s=rng.choice((0.01, 0.01, 0.5, 3.0)) * TICK_S,
        copy_s=rng.choice((0.01, 1.0, 10.0)) * TICK_S,
        slow_ranks=slow,
        slow_times=rng.choice((3.0, 30.0)),
    )


def _random_faults(rng: random.Random, num_ranks: int) -> list[Fault]:
    kinds: Sequence[FaultKind] = (
        "killed", "killed", "killed", "ended", "failed", "failed copy", "frozen", "hung",
        "killed at start", "left",
    )  # fmt: skip
    return [
        Fault(rng.choice(kinds), rng.randrange(num_ranks), rng.choice((0, 1, 3, 10)))
        for _ in range(rng.choice((1, 1, 1, 2)))
    ]


def _random_request(rng: random.Random, index: int, script: Script, trace: Trace) -> Asked:
    """The trace's, with what only an engine knows: several answers, stop strings, streaming."""
    stop: tuple[str, ...] = ()
    if script.stop_pair is not None:
        stop = ("".join(chr(FIRST_CHAR + token) for token in script.stop_pair),)
    is_empty = rng.random() < 0.03
    sampling = replace(
        script.sampling,
        n=rng.choice((1, 1, 1, 1, 2, 3)),
        seed=rng.choice((None, script.seed)),
        stop=stop,
        include_stop_str_in_output=rng.random() < 0.2,
        max_tokens=0 if is_empty else script.sampling.max_tokens,
        min_tokens=0 if is_empty else script.sampling.min_tokens,
        logprobs=rng.choice((None, None, None, 0, 2)),
    )
    after_tokens = script.abort_after_tokens
    return Asked(
        f"r{index}",
        script.prompt,
        sampling,
        stream=after_tokens is not None or rng.random() < 0.3,
        arrival_s=script.arrival_tick * TICK_S,
        abort_s=None
        if script.abort_tick is None
        else script.abort_tick * rng.random() * 3 * TICK_S,
        abort_after_tokens=after_tokens,
    )
