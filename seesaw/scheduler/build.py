"""From settings and a memory plan to the schedulers of an engine, one per replica: the same ones
whether ranks or a clock carry out what they say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from seesaw.config import EngineConfig
from seesaw.errors import ConfigError
from seesaw.plan.choice import LayoutChoice
from seesaw.plan.cost_model import CostModel
from seesaw.plan.lane_costs import LaneCosts
from seesaw.plan.memory import MemoryPlan, check_policy
from seesaw.scheduler import policies
from seesaw.scheduler.config import SchedulerConfig, TierConfig
from seesaw.scheduler.policy import Redecides, SharesDevice, UsesCosts
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
    costs: Callable[[int], CostModel | str],
    share_units: int = 1,
    lane_costs: LaneCosts | None = None,
) -> list[Scheduler]:
    """`policy` by name; its options are the config's. `rotation_tokens`: that a step may load of
    running requests (`plan/rotation.py`). `debug`: blocks are checked in each step. `costs`: what
    steps of a replica cost in its decode layout, or in words why that is not known and what to do;
    asked for where the policy decides by it. `share_units`: parts of a device that lanes can share,
    `lane_costs` what steps cost on them; for policies with lanes.

    Raises ConfigError where the policy is not known, does not take its options, cannot do with
    these costs, has lanes that the layout does not allow, or was given more tokens of a step than
    steps have.
    """
    _check_step_options(policy, config)
    num_lanes = policies.num_lanes(policy)
    if num_lanes > 1:
        check_lanes(policy, layouts, share_units)
    settings = SchedulerConfig(
        num_blocks=memory.num_blocks,
        block_size=config.block_size,
        num_layers=num_layers,
        max_model_len=memory.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.step_tokens,
        max_steps_in_flight=max_steps_in_flight,
        enable_prefix_caching=config.enable_prefix_caching,
        num_stages=layouts.decode.pp,
        tier=_tier_config(memory, layouts, rotation_tokens),
        num_lanes=num_lanes,
        share_units=share_units,
        debug=debug,
    )
    # A policy has state: each replica has one of its own.
    made = [policies.make(policy, config.policy_options) for _ in range(layouts.dp)]
    for replica, one in enumerate(made):
        if layouts.times is not None and isinstance(one, Redecides):
            one.redecide_by(layouts.times)
        if isinstance(one, UsesCosts):
            one.use_costs(costs(replica), settings)
        if lane_costs is not None and isinstance(one, SharesDevice):
            one.share_by(lane_costs)
    return [Scheduler(settings, one) for one in made]


def check_settings(config: EngineConfig, layouts: LayoutChoice) -> None:
    """Refuse what a memory plan or `make_schedulers` would refuse of the policy of `config` in
    `layouts`, as far as it can be told without a model and a device. Raises ConfigError."""
    policy = config.resolve_policy(layouts.prefill != layouts.decode)
    check_policy(config, layouts, policies.uses_tier(policy))
    policies.make(policy, config.policy_options)
    _check_step_options(policy, config)
    if (num_lanes := policies.num_lanes(policy)) > 1:
        check_lanes(policy, layouts, share_units=num_lanes)


def _tier_config(
    memory: MemoryPlan, layouts: LayoutChoice, rotation_tokens: int
) -> TierConfig | None:
    if not memory.tier_blocks:
        return None
    return TierConfig(
        prefill_blocks=memory.prefill_blocks,
        tier_blocks=memory.tier_blocks,
        tier_block_size=memory.tier_block_size,
        prefill_stages=layouts.prefill.pp,
        decode_stages=layouts.decode.pp,
        relays=memory.relays,
        rotation_tokens=rotation_tokens,
    )


def _check_step_options(policy: str, config: EngineConfig) -> None:
    """Options whose metadata say `of_step` are tokens of a step. Their defaults may be more than a
    step has: then it is what counts."""
    for option in fields(policies.get(policy).Options):
        given = config.policy_options.get(option.name, option.default)
        if not option.metadata.get("of_step") or given == option.default:
            continue
        if isinstance(given, int) and given > config.step_tokens:
            raise ConfigError(
                f"{option.name}={given}: policy {policy!r} cannot give a step so many tokens, "
                f"max_num_batched_tokens={config.step_tokens}. Raise that, or lower {option.name}."
            )


def check_lanes(policy: str, layouts: LayoutChoice, share_units: int) -> None:
    """Raises ConfigError where a device cannot have the lanes of `policy`."""
    replica = layouts.decode.replica
    if replica.num_ranks > 1:
        raise ConfigError(
            f"policy={policy!r} runs two lanes on the one device of a replica, got layout "
            f"{layouts.decode}. Give tensor_parallel_size=1 and pipeline_parallel_size=1, or "
            "another policy, such as 'sarathi-serve'."
        )
    if share_units < 2:
        raise ConfigError(
            f"policy={policy!r} shares a device out to two lanes, and this one has a single part: "
            "a core, or 8 SMs. Give it more (cpu_threads, cpu_cores), or another policy, such as "
            "'continuous'."
        )
