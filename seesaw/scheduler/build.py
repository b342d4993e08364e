"""From settings and a memory plan to the schedulers of an engine, one per replica: the same ones
whether ranks or a clock carry out what they say."""

from __future__ import annotations

from seesaw.config import EngineConfig
from seesaw.plan.choice import LayoutChoice
from seesaw.plan.memory import MemoryPlan
from seesaw.scheduler import policies
from seesaw.scheduler.config import SchedulerConfig, TierConfig
from seesaw.scheduler.policy import Redecides
from seesaw.scheduler.scheduler import Scheduler


def make_schedulers(
    config: EngineConfig,
    memory: MemoryPlan,
    layouts: LayoutChoice,
    num_layers: int,
    policy: str,
    *,
    max_steps_in_flight: int,
    debug: bool,
    rotation_tokens: int = 0,
) -> list[Scheduler]:
    """`policy` by name; its options are the config's. `rotation_tokens`: that a step may load of
    running requests (`plan/rotation.py`). `debug`: blocks are checked in each step.

    Raises ConfigError where the policy is not known or does not take its options.
    """
    tier = None
    if memory.tier_blocks:
        tier = TierConfig(
            prefill_blocks=memory.prefill_blocks,
            tier_blocks=memory.tier_blocks,
            tier_block_size=memory.tier_block_size,
            prefill_stages=layouts.prefill.pp,
            decode_stages=layouts.decode.pp,
            relays=memory.relays,
            rotation_tokens=rotation_tokens,
        )
    settings = SchedulerConfig(
        num_blocks=memory.num_blocks,
        block_size=config.block_size,
        num_layers=num_layers,
        max_model_len=memory.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_steps_in_flight=max_steps_in_flight,
        enable_prefix_caching=config.enable_prefix_caching,
        num_stages=layouts.decode.pp,
        tier=tier,
        debug=debug,
    )
    # A policy has state: each replica has one of its own.
    made = [policies.make(policy, config.policy_options) for _ in range(layouts.dp)]
    if layouts.times is not None:
        for one in made:
            if isinstance(one, Redecides):
                one.redecide_by(layouts.times)
    return [Scheduler(settings, one) for one in made]
