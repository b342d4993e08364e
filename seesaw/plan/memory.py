"""Who gets how much memory, decided before a weight is read: the plan for devices and host.

A device's budget is split exactly (`device_memory.py`): weights, work space of the largest step,
and what is left for KV blocks. The host holds the weight image and the KV tier.
"""

from __future__ import annotations

from dataclasses import dataclass

from seesaw.config import EngineConfig
from seesaw.errors import ConfigError, DoesNotFit
from seesaw.families.spec import ModelSpec
from seesaw.layout.kv import TierShape, check_tier_blocks
from seesaw.plan.choice import LayoutChoice
from seesaw.plan.device_memory import DeviceSplit, Setting, Space
from seesaw.sizes import format_bytes, parse_bytes

__all__ = ["MemoryPlan", "Space", "plan_memory"]

DEFAULT_TIER_SHARE_OF_FREE = 0.5


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Sizes in bytes; `reason` says where the budget comes from.

    Of one device, as large as the rank that needs most: `arena_bytes` (weights), `work_bytes` (of
    which `graph_bytes` for CUDA graphs), and bytes per block of its two pools. Both pools have the
    same number of blocks on all ranks; `num_blocks` is the decode pool's, `prefill_blocks` is 0
    where there is no tier. Of the host: `image_bytes`, and `tier_bytes` for all `num_replicas` of
    `tier_blocks` each.
    """

    num_ranks: int
    num_replicas: int
    budget_bytes: int
    reason: str
    arena_bytes: int
    work_bytes: int
    graph_bytes: int
    prefill_block_bytes: int
    block_bytes: int
    prefill_blocks: int
    num_blocks: int
    block_size: int
    max_model_len: int
    model_len_reason: str
    image_bytes: int
    tier_blocks: int
    tier_block_size: int
    tier_bytes: int
    relays: bool = False
    """KV of prompts that will run at once goes from rank to rank."""

    @property
    def kv_bytes(self) -> int:
        return self.num_blocks * self.block_bytes + self.prefill_blocks * self.prefill_block_bytes

    def describe(self) -> str:
        each = "" if self.num_ranks == 1 else f" on each of {self.num_ranks} devices"
        parts = [
            f"memory budget {format_bytes(self.budget_bytes)}{each} ({self.reason}): "
            f"weights {format_bytes(self.arena_bytes)}, "
            f"work space {format_bytes(self.work_bytes)}, KV {format_bytes(self.kv_bytes)} = "
            f"{self.num_blocks * self.block_size} tokens in {self.num_blocks} blocks"
        ]
        if self.prefill_blocks:
            tokens = self.prefill_blocks * self.block_size
            parts[0] += f" and {tokens} of prompts in {self.prefill_blocks}"
        host = []
        if self.image_bytes:
            host.append(f"weights {format_bytes(self.image_bytes)}")
        if self.tier_blocks:
            share = " of each replica" if self.num_replicas > 1 else ""
            host.append(
                f"KV tier {format_bytes(self.tier_bytes)} = "
                f"{self.tier_blocks * self.tier_block_size} tokens in {self.tier_blocks} "
                f"blocks{share}"
            )
        if host:
            parts.append(f"host: {', '.join(host)}")
        parts.append(
            f"longest prompt + answer {self.max_model_len} tokens ({self.model_len_reason})"
        )
        return "; ".join(parts)


def plan_memory(
    config: EngineConfig, spec: ModelSpec, element_bytes: int, space: Space,
    layouts: LayoutChoice, uses_tier: bool, *, kv_element_bytes: int | None = None,
    name_others: bool = True, native: bool = False, splits_layers: bool = False,
    num_lanes: int = 1,
) -> MemoryPlan:  # fmt: skip
    """Split the budget of every device, and what the host has.

    `element_bytes` of weights and of what is computed, `kv_element_bytes` of KV where they differ;
    `uses_tier`: whether the policy does, `splits_layers`: whether its rows may stop between two
    layers, `num_lanes`: steps that a device runs beside each other. `name_others`: an error names
    other layouts that would fit, all of which are planned for that. `native`: seesaw's own kernels
    compute.

    Raises DoesNotFit, with the bytes of each part, where a device cannot hold its part of the
    model and one request of the longest length, or the host weights and tier; ConfigError where
    settings do not go together.
    """
    check_policy(config, layouts, uses_tier)
    setting = Setting(
        config=config, spec=spec, element_bytes=element_bytes,
        kv_element_bytes=kv_element_bytes or element_bytes, space=space, prefill=layouts.prefill,
        decode=layouts.decode, uses_tier=uses_tier, native=native, splits_layers=splits_layers,
        num_lanes=num_lanes,
    )  # fmt: skip
    split = DeviceSplit.of(setting)
    if not split.fits:
        raise split.too_small(name_others=name_others)
    image_bytes = setting.weights.image if layouts.num_ranks > 1 else 0
    on_host = split.budget * layouts.num_ranks if space.kind == "cpu" else 0
    free = _free_beside(space, image_bytes, on_host)
    tier_block_bytes = _tier_block_bytes(setting)
    tier_blocks = 0
    if uses_tier:
        tier_blocks = _tier_blocks(setting, free, tier_block_bytes)
    max_model_len, why = _model_len(split, tier_blocks)
    return MemoryPlan(
        num_ranks=layouts.num_ranks,
        num_replicas=layouts.dp,
        budget_bytes=split.budget,
        reason=split.reason,
        arena_bytes=max(rank.arena_bytes for rank in split.ranks),
        work_bytes=max(rank.work_bytes for rank in split.ranks),
        graph_bytes=max(rank.graph_bytes for rank in split.ranks),
        prefill_block_bytes=max(rank.prefill_block_bytes for rank in split.ranks),
        block_bytes=max(rank.block_bytes for rank in split.ranks),
        prefill_blocks=split.prefill_blocks,
        num_blocks=split.num_blocks,
        block_size=config.block_size,
        max_model_len=max_model_len,
        model_len_reason=why,
        image_bytes=image_bytes,
        tier_blocks=tier_blocks,
        tier_block_size=config.tier_block_size,
        tier_bytes=layouts.dp * tier_blocks * tier_block_bytes,
        relays=setting.relays,
    )


def check_policy(config: EngineConfig, layouts: LayoutChoice, uses_tier: bool) -> None:
    """Raises ConfigError where the policy cannot do with these layouts, or with what is asked of
    the host tier."""
    policy = config.resolve_policy(layouts.prefill != layouts.decode)
    if uses_tier:
        check_tier_blocks(config.tier_block_size, config.block_size)
    elif layouts.prefill != layouts.decode:
        raise ConfigError(
            f"policy={policy!r} keeps no KV in the host tier, through which it goes from "
            f"{layouts.prefill} to {layouts.decode}. Use policy='seesaw' or 'seesaw-cost', or give "
            "one layout."
        )
    elif config.host_kv_memory is not None:
        raise ConfigError(
            f"host_kv_memory={config.host_kv_memory!r}: policy={policy!r} uses no host tier. "
            "Leave it out, or use policy='seesaw' or 'seesaw-cost'."
        )
    elif config.kv_path == "peers":
        raise ConfigError(
            f"kv_path='peers': policy={policy!r} computes prompts where they are answered, so that "
            "no KV moves. Leave it out, or use policy='seesaw' or 'seesaw-cost'."
        )


def _free_beside(space: Space, image_bytes: int, on_host: int) -> int:
    """Bytes of the host that are free beside weights and the budgets of devices that are part of
    it. Raises DoesNotFit where these are too much already."""
    missing = image_bytes + on_host - space.host_free
    if image_bytes and missing > 0:
        beside = f" beside {format_bytes(on_host)} of the devices" if on_host else ""
        raise DoesNotFit(
            f"the host needs {format_bytes(image_bytes)} for the weights{beside}, but only "
            f"{format_bytes(space.host_free)} of {format_bytes(space.host_total)} are free, "
            f"{format_bytes(missing)} too few. Lower device_memory, or free memory first.",
            missing_bytes=missing,
        )
    return max(0, -missing)


def _tier_block_bytes(setting: Setting) -> int:
    tokens = setting.config.tier_block_size
    return TierShape.of(setting.spec, 1, tokens, setting.kv_element_bytes).block_bytes


def _tier_blocks(setting: Setting, free: int, block_bytes: int) -> int:
    """Of each replica. Memory is committed as blocks are used, so nothing but `free` bounds it."""
    config, dp = setting.config, setting.decode.dp
    if config.host_kv_memory is not None:
        size, reason = parse_bytes(config.host_kv_memory, "host_kv_memory"), "host_kv_memory"
        if size > free:
            raise DoesNotFit(
                f"host_kv_memory is {format_bytes(size)}, but only {format_bytes(free)} of the "
                f"host's memory are free beside weights and devices, {format_bytes(size - free)} "
                "too few. Lower it or device_memory, or free memory first.",
                missing_bytes=size - free,
            )
    else:
        size = int(free * DEFAULT_TIER_SHARE_OF_FREE)
        reason = "half of what is free on the host"
    blocks = size // dp // block_bytes
    wanted = setting.wanted_len
    needed = -(-wanted // config.tier_block_size) if config.max_model_len else 1
    if blocks < needed:
        what = f"one request of {wanted} tokens" if config.max_model_len else "one block"
        each = f" for each of {dp} replicas" if dp > 1 else ""
        missing = dp * needed * block_bytes - size
        raise DoesNotFit(
            f"the host tier of {format_bytes(size)} ({reason}) is too small: {what} takes "
            f"{format_bytes(needed * block_bytes)}{each}, {format_bytes(missing)} more than there "
            "is. Raise host_kv_memory, or lower max_model_len or tier_block_size.",
            missing_bytes=missing,
        )
    return blocks


def _model_len(split: DeviceSplit, tier_blocks: int) -> tuple[int, str]:
    """Longest prompt + answer, and why."""
    config, wanted = split.setting.config, split.setting.wanted_len
    if config.max_model_len:
        return wanted, "as asked for"
    holds = {"as much as the KV memory holds": split.num_blocks * config.block_size}
    if split.setting.uses_tier:
        holds["as much as the prefill pool holds"] = split.prefill_blocks * config.block_size
        holds["as much as the host tier holds"] = tier_blocks * config.tier_block_size
    why = min(holds, key=lambda reason: holds[reason])
    if holds[why] >= wanted:
        return wanted, "the model's limit"
    return holds[why], why
