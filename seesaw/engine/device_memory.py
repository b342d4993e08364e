"""How the memory of devices is split: the budget of each, what its ranks need in either layout, and
the blocks of KV that are left.

Every rank of a replica is looked at, and the one with the least room decides. The host's own
memory is the business of `memory.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch

from seesaw.config import EngineConfig, format_bytes, parse_bytes
from seesaw.engine.build import COPY_THREADS
from seesaw.engine.host import host_memory
from seesaw.engine.prompts import longest_wanted
from seesaw.errors import ConfigError
from seesaw.families.spec import ModelSpec
from seesaw.kvcache.copies import staging_bytes
from seesaw.layout.arena import layer_bytes, plan_arena
from seesaw.layout.kv import PoolShape
from seesaw.layout.pairs import layouts_for
from seesaw.layout.parallel import ParallelLayout
from seesaw.layout.plain import PlainFormat
from seesaw.layout.ranges import RankRanges, rank_ranges
from seesaw.models.workspace import workspace_bytes

DEFAULT_CUDA_UTILIZATION = 0.9
DEFAULT_CPU_SHARE_OF_FREE = 0.5
PREFILL_SHARE_OF_KV = 1 / 3
"""The prefill pool's at most: answers stay for long, prompts only until they are in the tier."""

MOST_NAMED = 4
"""Layouts that an error names."""


class RankNeeds(NamedTuple):
    """Bytes that one rank needs: its arena, a step's work space, and a block of either pool (the
    same where there is one layout)."""

    rank: int
    arena_bytes: int
    work_bytes: int
    prefill_block_bytes: int
    block_bytes: int

    def kv_room(self, budget: int) -> int:
        return budget - self.arena_bytes - self.work_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the split of a device depends on. Layouts with all their replicas, which are alike."""

    config: EngineConfig
    spec: ModelSpec
    dtype: torch.dtype
    device: torch.device
    prefill: ParallelLayout
    decode: ParallelLayout
    uses_tier: bool

    @property
    def num_ranks(self) -> int:
        return self.decode.num_ranks

    @property
    def wanted_len(self) -> int:
        """Tokens of prompt and answer together. Raises ConfigError."""
        return longest_wanted(self.config, self.spec)

    @property
    def blocks_per_request(self) -> int:
        return -(-self.wanted_len // self.config.block_size)

    @property
    def least_blocks(self) -> int:
        """Of a pool: a length that was asked for must fit whole, another one is lowered."""
        return self.blocks_per_request if self.config.max_model_len else 2


@dataclass(frozen=True, slots=True)
class DeviceSplit:
    """`prefill_blocks` is 0 where there is no tier; `num_blocks`, of the decode pool, may be too
    few: see `fits`."""

    setting: Setting
    budget: int
    reason: str
    ranks: Sequence[RankNeeds]
    prefill_blocks: int
    num_blocks: int

    @classmethod
    def of(cls, setting: Setting) -> Self:
        """Raises ConfigError where the budget is more than there is."""
        budget, reason = device_budget(setting.config, setting.device, setting.num_ranks)
        ranks = _needs(setting)
        prefill_blocks, num_blocks = _pools(setting, ranks, budget)
        return cls(setting, budget, reason, ranks, prefill_blocks, num_blocks)

    @property
    def fits(self) -> bool:
        """Each device holds its part of the model and one request."""
        return self.num_blocks >= self.setting.least_blocks

    def too_small(self) -> ConfigError:
        """Bytes by part of the rank that lacks most, and the layouts that would fit."""
        setting, budget = self.setting, self.budget
        blocks = setting.blocks_per_request

        def kv_bytes(rank: RankNeeds) -> int:
            prefill = rank.prefill_block_bytes if setting.uses_tier else 0
            return blocks * (rank.block_bytes + prefill)

        rank = min(self.ranks, key=lambda rank: rank.kv_room(budget) - kv_bytes(rank))
        whose = "" if setting.num_ranks == 1 else f" of rank {rank.rank}"
        pools = " in the pools of both phases" if setting.uses_tier else ""
        need = rank.arena_bytes + rank.work_bytes + kv_bytes(rank)
        fitting = ", ".join(_layouts_that_fit(setting))
        return ConfigError(
            f"the memory budget{whose} of {format_bytes(budget)} ({self.reason}) is too small: "
            f"weights {format_bytes(rank.arena_bytes)}, work space "
            f"{format_bytes(rank.work_bytes)}, KV of one request of {setting.wanted_len} tokens"
            f"{pools} {format_bytes(kv_bytes(rank))}, together {format_bytes(need)}. Raise "
            "device_memory, or lower max_model_len or max_num_batched_tokens."
            + (f" Layouts of these devices that fit: {fitting}." if fitting else "")
        )


def device_budget(config: EngineConfig, device: torch.device, num_ranks: int) -> tuple[int, str]:
    """Bytes of each device, and where the figure comes from. On CPU all ranks share the machine.

    Raises ConfigError where it is more than is free.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        for index in range(1, num_ranks):
            # Asking another GPU what is free would put a context of this process there.
            other = torch.cuda.get_device_properties(index).total_memory
            free, total = min(free, other), min(total, other)
        sharers, where = 1, "of the GPU's memory"
    else:
        free, total = host_memory()
        sharers, where = num_ranks, "of the machine's memory"
    shared = f", shared by {sharers} ranks" if sharers > 1 else ""
    if config.device_memory is not None:
        budget, reason = parse_bytes(config.device_memory, "device_memory"), "device_memory"
    elif config.gpu_memory_utilization is not None:
        budget = int(total * config.gpu_memory_utilization) // sharers
        reason = f"{config.gpu_memory_utilization:g} {where}{shared}"
    elif device.type == "cuda":
        budget = int(total * DEFAULT_CUDA_UTILIZATION)
        reason = f"{DEFAULT_CUDA_UTILIZATION:g} {where}"
    else:
        budget = int(free * DEFAULT_CPU_SHARE_OF_FREE) // sharers
        return budget, f"half of the free memory{shared}"
    if budget * sharers > free:
        times = f" on each of {sharers} ranks of this machine" if sharers > 1 else ""
        raise ConfigError(
            f"{reason} is {format_bytes(budget)}{times}, but only {format_bytes(free)} of "
            f"{format_bytes(total)} are free. Lower it or free memory first."
        )
    return budget, reason


def _needs(setting: Setting) -> list[RankNeeds]:
    """Of the ranks of one replica."""
    spec = setting.spec
    layouts = list(dict.fromkeys([setting.prefill.replica, setting.decode.replica]))
    ranks = range(layouts[0].num_ranks)
    ranges = [[rank_ranges(layout, spec, rank) for rank in ranks] for layout in layouts]
    fmt = PlainFormat(spec, setting.dtype.itemsize)
    # What is read from arenas during a change of layout is held aside, a layer at a time.
    staging = layer_bytes(fmt) if len(layouts) > 1 else 0
    found = []
    for rank in ranks:
        held = [by_rank[rank] for by_rank in ranges]
        # One device has its weights straight from the checkpoint, as they are.
        arena = spec.num_parameters * setting.dtype.itemsize
        if setting.num_ranks > 1:
            arena = plan_arena(fmt, ranges, rank).nbytes
        blocks = [_block_bytes(setting, one) for one in held]
        work = max(_work_bytes(setting, one) for one in held) + staging
        if setting.uses_tier:
            parts = setting.config.tier_block_size // setting.config.block_size
            work += COPY_THREADS * staging_bytes(parts * max(blocks))
        found.append(RankNeeds(rank, arena, work, blocks[0], blocks[-1]))
    return found


def _work_bytes(setting: Setting, ranges: RankRanges) -> int:
    config = setting.config
    return workspace_bytes(
        setting.spec,
        num_tokens=config.max_num_batched_tokens,
        num_sampled=config.max_num_seqs,
        max_model_len=setting.wanted_len,
        block_size=config.block_size,
        dtype=setting.dtype,
        device=setting.device,
        ranges=ranges,
    )


def _block_bytes(setting: Setting, ranges: RankRanges) -> int:
    head_dim, block_size = setting.spec.head_dim, setting.config.block_size
    layers, heads = ranges.layers, ranges.kv_heads
    return PoolShape(layers, heads, 1, block_size, head_dim, setting.dtype.itemsize).nbytes


def _pools(setting: Setting, ranks: Sequence[RankNeeds], budget: int) -> tuple[int, int]:
    """Blocks of the prefill and of the decode pool, as many as every rank can hold.

    The prefill pool is a ring: it needs the longest prompt, or a micro-batch for each stage, one
    that is on its way to the tier and one that is planned.
    """
    config = setting.config
    rooms = [rank.kv_room(budget) for rank in ranks]
    prefill_blocks = 0
    if setting.uses_tier:
        ring = max(setting.wanted_len, (setting.prefill.pp + 2) * config.max_num_batched_tokens)
        share = min(
            int(room * PREFILL_SHARE_OF_KV) // rank.prefill_block_bytes
            for rank, room in zip(ranks, rooms, strict=True)
        )
        prefill_blocks = min(-(-ring // config.block_size), max(share, setting.least_blocks))
    num_blocks = min(
        (room - prefill_blocks * rank.prefill_block_bytes) // rank.block_bytes
        for rank, room in zip(ranks, rooms, strict=True)
    )
    return prefill_blocks, min(num_blocks, config.max_num_seqs * setting.blocks_per_request)


def _layouts_that_fit(setting: Setting) -> list[str]:
    """A few others over the same devices, those that keep one of the two first."""
    options = layouts_for(setting.num_ranks, setting.spec)
    pairs = [(one, other) for one in options for other in options if one.dp == other.dp]
    if not setting.uses_tier:
        pairs = [(one, other) for one, other in pairs if one == other]
    given = (setting.prefill, setting.decode)
    pairs.sort(key=lambda pair: sum(a != b for a, b in zip(pair, given, strict=True)))
    found: list[str] = []
    for prefill, decode in pairs:
        if DeviceSplit.of(replace(setting, prefill=prefill, decode=decode)).fits:
            found.append(str(prefill) if prefill == decode else f"{prefill} -> {decode}")
        if len(found) == MOST_NAMED:
            break
    return found
