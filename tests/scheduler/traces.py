"""Random traces for the scheduler: requests with what happens to them from outside, a
configuration, and how late workers report. `player` plays them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from seesaw.sampling_params import SamplingParams
from seesaw.scheduler import policies
from seesaw.scheduler.config import SchedulerConfig, TierConfig
from tests.scheduler.worker_model import serial_tokens

EOS = 0
STOP = 1
STATES = ("waiting", "prefilling", "storing", "stored", "loading", "relaying", "resident",
          "yielded")  # fmt: skip
"""Of a request's life, as workers see it: `player.state_of`."""


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
    """or this many ticks after it first yielded,"""
    abort_in_state: str | None = None
    """or as soon as workers see it in this state: one of STATES."""
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
    transfer_pace: float = 1.0
    """Probability that a turn moves some of the copies in flight, and that it reports one."""


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
        if count < limit and ends_with(answer[:count], script.stop_pair):
            return answer[:count], "stop", "pair"
    return answer, "length", None


def ends_with(tokens: Sequence[int], pair: tuple[int, int] | None) -> bool:
    return pair is not None and tuple(tokens[-2:]) == pair


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
    options: dict[str, Sequence[Any]] = field(default_factory=dict)
    """What each option of the policy may be."""
    stages: tuple[int, int] = (1, 1)
    """Of the only layout, or of each of two."""
    with_tier: bool = False
    tier_factor: tuple[int, ...] = (1, 2, 4)
    """Device blocks in a tier block."""
    spare_tier_blocks: tuple[int, int] = (0, 20)
    spare_prefill_blocks: tuple[int, int] = (0, 20)
    rotation: tuple[int, ...] = (0,)
    """Tokens that a step may fetch of requests that run from the tier."""
    relays: float = 0.4
    """How often prompts may go from pool to pool."""
    all_at_once: float = 0.3
    """How often all requests are there from the begin."""


CONTINUOUS: dict[str, Sequence[Any]] = {
    "max_prefill_chunk": (0, 0, 1, 3, 7),
    "block_watermark": (0.0, 0.01, 0.3),
}
CHAOS: dict[str, Sequence[Any]] = {"seed": range(1000)}

# The other policies of one layout, each of which is run through the profiles of `continuous`.
_WATERMARKS = (0.0, 0.01, 0.3)
POLICY_OPTIONS: dict[str, dict[str, Sequence[Any]]] = {
    "prefill-first": {"block_watermark": _WATERMARKS},
    "layered-prefill": {
        "group_tokens": (1, 2, 5, 512),
        "max_groups": (1, 2, 16),
        "wave_tokens": (1, 7, 20, 8192),
        "block_watermark": _WATERMARKS,
    },
    "nexus": {
        "prefill_tokens": (0, 1, 7, 20),
        "age_weight": (0.0, 15.0, 1e9),
        "prefill_share": (0.0, 0.0, 0.3, 0.9),
        "kv_switch": (0.0, 0.7, 1.0),
        "hysteresis": (0.0, 0.1, 1.0),
        "block_watermark": _WATERMARKS,
    },
    "sarathi": {"chunk": (8, 16, 64), "tile": (1, 2, 4, 8)},
    "sarathi-serve": {
        "token_budget": (1, 2, 5, 16, 64),
        "block_watermark": _WATERMARKS,
        "batches": ("stall-free", "stall-free", "hybrid-only", "chunk-only"),
    },
}

PROFILES = {
    "mixed": Profile(options=CONTINUOUS),
    "tiny-pool": Profile(
        spare_blocks=(0, 3), budget=(4, 40), abort_rate=0.1, vocab_size=(40,), options=CONTINUOUS
    ),
    "tiny-budget": Profile(budget=(1, 4), prompt_len=(1, 30), options=CONTINUOUS),
    "shared": Profile(
        shared_prompts=1.0, spare_blocks=(0, 12), prompt_len=(4, 24), options=CONTINUOUS
    ),
    "aborts": Profile(abort_rate=0.8, spare_blocks=(0, 6), in_flight=(2, 4), options=CONTINUOUS),
    "shuffled": Profile(in_order=0.0, in_flight=(2, 4), spare_blocks=(0, 10), options=CONTINUOUS),
    "short": Profile(max_tokens=(1, 2), prompt_len=(1, 6), requests=(4, 16), options=CONTINUOUS),
    "pipeline": Profile(stages=(2, 4), spare_blocks=(0, 20), options=CONTINUOUS),
    "pipeline-shuffled": Profile(
        stages=(2, 4), spare_blocks=(0, 6), in_order=0.0, abort_rate=0.5, options=CONTINUOUS
    ),
    "chaos": Profile(
        policy="tests.scheduler.chaos:Chaos", spare_blocks=(0, 12), stages=(1, 3), options=CHAOS
    ),
    "lanes": Profile(
        policy="tests.scheduler.chaos:ContinuousLanes", spare_blocks=(0, 12), options=CONTINUOUS
    ),
    "lanes-chaos": Profile(
        policy="tests.scheduler.chaos:ChaosLanes", spare_blocks=(0, 12), options=CHAOS
    ),
}


def shapes_for(policy: str) -> list[str]:
    """Profiles of `continuous`; lanes have one stage."""
    return [
        name
        for name, profile in PROFILES.items()
        if profile.policy == "continuous"
        and (policies.num_lanes(policy) == 1 or profile.stages == (1, 1))
    ]


def with_policy(profile: Profile, policy: str) -> Profile:
    """The same traces for another policy of one layout."""
    return replace(profile, policy=policy, options=POLICY_OPTIONS[policy])


# A tier between two layouts.
SEESAW: dict[str, Sequence[Any]] = {
    "switch": ("minimal", "minimal", "minimal", "prefill-first", "decode-first"),
    "low_mark": (0.0, 0.0, 0.0, 0.2, 0.7),
    "load_watermark": (0.0, 0.05, 0.4),
    "tail": (True, True, False),
    "tail_tokens": (0, 5, 1000),
}
COST: dict[str, Sequence[Any]] = {
    "load_watermark": (0.0, 0.05, 0.4),
    "least_measured": (1, 2, 5),
}
_TIER = Profile(with_tier=True, policy="seesaw", options=SEESAW, stages=(1, 4))
_STRICT = replace(
    _TIER, options={"tail": (True, False)}, all_at_once=1.0, requests=(2, 16), abort_rate=0.05
)

TIER_PROFILES = {
    "mixed": _TIER,
    "tiny": replace(
        _TIER, spare_blocks=(0, 3), spare_tier_blocks=(0, 2), spare_prefill_blocks=(0, 3)
    ),
    "one-stage": replace(_TIER, stages=(1, 1), in_flight=(1, 4)),
    "aborts": replace(_TIER, abort_rate=0.9, spare_blocks=(0, 8), spare_tier_blocks=(0, 4)),
    "shuffled": replace(_TIER, in_order=0.0, in_flight=(2, 4), spare_blocks=(0, 10)),
    "short": replace(_TIER, max_tokens=(1, 2), prompt_len=(1, 8), requests=(4, 16)),
    "shared": replace(_TIER, shared_prompts=1.0, prompt_len=(4, 24), spare_blocks=(0, 12)),
    "large-blocks": replace(_TIER, block_size=(4, 16), prompt_len=(1, 60), max_tokens=(1, 40)),
    "large-tier": replace(_TIER, spare_blocks=(0, 4), spare_tier_blocks=(400, 800)),
    "relays": replace(_TIER, relays=1.0, abort_rate=0.6),
    "relays-tiny": replace(
        _STRICT, relays=1.0, spare_blocks=(0, 12), spare_tier_blocks=(0, 3), abort_rate=0.3
    ),
    "strict": _STRICT,
    "strict-tiny": replace(_STRICT, spare_blocks=(0, 6), spare_tier_blocks=(0, 4)),
    "chaos": replace(
        _TIER,
        policy="tests.scheduler.chaos:Chaos",
        options=CHAOS,
        spare_blocks=(0, 12),
        spare_tier_blocks=(0, 12),
        rotation=(0, 20),
    ),
    "rotation": replace(
        _TIER,
        rotation=(8, 30, 200),
        stages=(1, 6),
        spare_blocks=(0, 12),
        requests=(4, 20),
        max_num_seqs=(2, 20),
        max_tokens=(1, 30),
        spare_tier_blocks=(10, 200),
    ),
    "rotation-tiny": replace(
        _TIER,
        rotation=(1, 20),
        stages=(1, 5),
        spare_blocks=(0, 3),
        requests=(3, 10),
        spare_tier_blocks=(0, 8),
        abort_rate=0.5,
        policy="seesaw",
        in_order=0.3,
    ),
    "cost": replace(_TIER, policy="seesaw-cost", options=COST),
    "cost-tiny": replace(
        _TIER, policy="seesaw-cost", options=COST, spare_blocks=(0, 4), spare_tier_blocks=(0, 3)
    ),
}


def random_trace(rng: random.Random, profile: Profile) -> Trace:
    vocab_size = rng.choice(profile.vocab_size)
    max_model_len = profile.prompt_len[1] + rng.randint(1, profile.max_tokens[1] + 4)
    stems = [[rng.randrange(vocab_size) for _ in range(profile.prompt_len[1])] for _ in range(2)]
    count = rng.randint(*profile.requests)
    busy = 0 if rng.random() < profile.all_at_once else rng.choice((3, 30))
    scripts = [
        _random_script(rng, profile, vocab_size, stems, rng.randint(0, busy * index))
        for index in range(count)
    ]
    block_size = rng.choice(profile.block_size)
    most = [num_positions(script, max_model_len) - 1 for script in scripts]
    config = SchedulerConfig(
        num_blocks=-(-max(most) // block_size) + rng.randint(*profile.spare_blocks),
        block_size=block_size,
        num_layers=rng.randint(1, 6),
        max_model_len=max_model_len,
        max_num_seqs=rng.randint(*profile.max_num_seqs),
        max_num_batched_tokens=rng.randint(*profile.budget),
        max_steps_in_flight=rng.randint(*profile.in_flight),
        enable_prefix_caching=rng.random() < 0.85,
        debug=True,
        num_stages=1 if profile.with_tier else rng.randint(*profile.stages),
        num_lanes=policies.num_lanes(profile.policy),
        share_units=rng.randint(2, 16),
        tier=_random_tier(rng, profile, block_size, scripts) if profile.with_tier else None,
    )
    return Trace(
        config,
        scripts,
        vocab_size,
        delivery_seed=rng.randrange(2**32),
        in_order=rng.random() < profile.in_order,
        policy=profile.policy,
        options={name: rng.choice(values) for name, values in profile.options.items()},
        transfer_pace=rng.choice((1.0, 0.5, 0.1, 0.01)),
    )


def _random_tier(
    rng: random.Random, profile: Profile, block_size: int, scripts: Sequence[Script]
) -> TierConfig:
    """Often as small as it may be: each prompt must fit alone, what is drawn after it need not."""
    most = max(len(script.prompt) for script in scripts)
    tier_block_size = block_size * rng.choice(profile.tier_factor)
    return TierConfig(
        prefill_blocks=-(-most // block_size) + rng.randint(*profile.spare_prefill_blocks),
        tier_blocks=-(-most // tier_block_size) + rng.randint(*profile.spare_tier_blocks),
        tier_block_size=tier_block_size,
        prefill_stages=rng.randint(*profile.stages),
        decode_stages=rng.randint(*profile.stages),
        relays=rng.random() < profile.relays,
        rotation_tokens=rng.choice(profile.rotation),
    )


def _random_script(
    rng: random.Random, profile: Profile, vocab_size: int, stems: list[list[int]], arrival: int
) -> Script:
    prompt = [rng.randrange(vocab_size) for _ in range(rng.randint(*profile.prompt_len))]
    if rng.random() < profile.shared_prompts:
        keep = rng.randint(0, len(prompt))
        prompt[:keep] = rng.choice(stems)[:keep]
    max_tokens = None if rng.random() < 0.1 else rng.randint(*profile.max_tokens)
    aborts: dict[str, Any] = {}
    if rng.random() < profile.abort_rate:
        kind = rng.choice(("tick", "after_tokens", "after_preemption", "in_state"))
        aborts[f"abort_{kind}"] = (
            rng.choice(STATES)
            if kind == "in_state"
            else rng.randint(0, 25 if kind == "tick" else 5)
        )
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
