"""How the memory of devices is split: the budget of each, what its ranks need in either layout, and
the blocks of KV that are left.

Every rank of a replica is looked at, and the one with the least room decides. The host's own
memory is the business of `memory.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Self

from seesaw.config import EngineConfig
from seesaw.errors import ConfigError, DoesNotFit
from seesaw.families.spec import ModelSpec
from seesaw.layout.format import FormatName
from seesaw.layout.kv import PoolShape
from seesaw.layout.pairs import layouts_for
from seesaw.layout.parallel import ParallelLayout
from seesaw.layout.plan import Reload
from seesaw.layout.ranges import RankRanges
from seesaw.plan.machine import Kind, Machine
from seesaw.plan.transition import relays_kv
from seesaw.plan.weight_bytes import (
    WeightBytes,
    from_peers,
    reload_of,
    weight_bytes,
    weight_format,
)
from seesaw.plan.workspace import (
    copy_staging_bytes,
    graph_bytes,
    relay_staging_bytes,
    saved_rows_bytes,
    workspace_bytes,
)
from seesaw.sizes import format_bytes, parse_bytes

DEFAULT_CUDA_UTILIZATION = 0.9
DEFAULT_CPU_SHARE_OF_FREE = 0.5
PREFILL_SHARE_OF_KV = 1 / 3
"""The prefill pool's at most: answers stay for long, prompts only until they are in the tier."""

MOST_NAMED = 4
"""Layouts that an error names."""


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes that there are: on the smallest of the devices, and on the host. Devices on CPU have
    the host's memory, which they share."""

    kind: Kind
    device_free: int
    device_total: int
    host_free: int
    host_total: int

    @classmethod
    def of(cls, machine: Machine) -> Self:
        """Of a machine that nothing else runs on."""
        host = machine.host_memory_bytes
        device = host
        if machine.kind == "cuda":
            device = min(device.memory_bytes for device in machine.devices)
        return cls(machine.kind, device, device, host, host)


class RankNeeds(NamedTuple):
    """Bytes that one rank needs: its arena (weights that are its own), a step's work space, and a
    block of either pool (the same where there is one layout). `graph_bytes` are part of the work
    space."""

    rank: int
    arena_bytes: int
    work_bytes: int
    graph_bytes: int
    prefill_block_bytes: int
    block_bytes: int

    def kv_room(self, budget: int) -> int:
        return budget - self.arena_bytes - self.work_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the split of a device depends on. Layouts with all their replicas, which are alike.

    `element_bytes` of weights and what is computed; `kv_element_bytes` of KV, the same without.
    `native`: seesaw's own kernels compute. `splits_layers`: rows may stop between two layers.
    `num_lanes`: steps run beside each other.
    """

    config: EngineConfig
    spec: ModelSpec
    element_bytes: int
    kv_element_bytes: int
    space: Space
    prefill: ParallelLayout
    decode: ParallelLayout
    uses_tier: bool
    native: bool = False
    splits_layers: bool = False
    num_lanes: int = 1

    @property
    def weights(self) -> WeightBytes:
        return weight_bytes(self.spec, self.element_bytes, self._format)

    @property
    def reload(self) -> Reload:
        """Raises ConfigError."""
        return reload_of(self.config, self._format)

    @property
    def relays(self) -> bool:
        return self.uses_tier and relays_kv(self.config, self.space.kind)

    @property
    def _format(self) -> FormatName:
        layouts = (self.prefill, self.decode)
        return weight_format(self.config, self.spec, layouts, self.space.kind, self.native)

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
        wanted = self.blocks_per_request
        return wanted if self.config.max_model_len else min(2, wanted)


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
        """Raises DoesNotFit where the budget is more than there is."""
        budget, reason = device_budget(setting.config, setting.space, setting.num_ranks)
        ranks = _needs(setting)
        prefill_blocks, num_blocks = _pools(setting, ranks, budget)
        return cls(setting, budget, reason, ranks, prefill_blocks, num_blocks)

    @property
    def fits(self) -> bool:
        """Each device holds its part of the model and one request."""
        return self.num_blocks >= self.setting.least_blocks

    def too_small(self, *, name_others: bool) -> DoesNotFit:
        """Bytes by part of the rank that lacks most; with the layouts that would fit if asked."""
        setting, budget = self.setting, self.budget

        def kv_bytes(rank: RankNeeds) -> int:
            return setting.least_blocks * _both_pools(setting, rank)

        rank = min(self.ranks, key=lambda rank: rank.kv_room(budget) - kv_bytes(rank))
        whose = "" if setting.num_ranks == 1 else f" of rank {rank.rank}"
        pools = " in the pools of both phases" if setting.uses_tier else ""
        held = f"one request of {setting.wanted_len} tokens"
        if not setting.config.max_model_len:
            held = f"{setting.least_blocks} blocks"
        need = rank.arena_bytes + rank.work_bytes + kv_bytes(rank)
        remedy = "or lower max_model_len or max_num_batched_tokens"
        if rank.arena_bytes >= budget:
            remedy = "take more devices, or a smaller model: weights alone are more than that"
        fitting = ", ".join(_layouts_that_fit(setting)) if name_others else ""
        return DoesNotFit(
            f"the memory budget{whose} of {format_bytes(budget)} ({self.reason}) is too small: "
            f"weights {format_bytes(rank.arena_bytes)}, work space "
            f"{format_bytes(rank.work_bytes)}, KV of {held}{pools} "
            f"{format_bytes(kv_bytes(rank))}, together {format_bytes(need)}, which is "
            f"{format_bytes(need - budget)} more than there is. Raise device_memory, {remedy}."
            + (f" Layouts of these devices that fit: {fitting}." if fitting else ""),
            missing_bytes=need - budget,
        )


def longest_wanted(config: EngineConfig, spec: ModelSpec) -> int:
    """Tokens of prompt and answer together that settings or model ask for. Raises ConfigError."""
    wanted = config.max_model_len or spec.max_position_embeddings
    if wanted > spec.max_position_embeddings:
        raise ConfigError(
            f"max_model_len={wanted}: the model's positions end at "
            f"{spec.max_position_embeddings}. Lower max_model_len."
        )
    return wanted


def device_budget(config: EngineConfig, space: Space, num_ranks: int) -> tuple[int, str]:
    """Bytes of each device, and where the figure comes from. On CPU all ranks share the machine.

    Raises DoesNotFit where it is more than is free.
    """
    free, total = space.device_free, space.device_total
    if space.kind == "cuda":
        sharers, where = 1, "of the GPU's memory"
    else:
        sharers, where = num_ranks, "of the machine's memory"
    shared = f", shared by {sharers} ranks" if sharers > 1 else ""
    if config.device_memory is not None:
        budget, reason = parse_bytes(config.device_memory, "device_memory"), "device_memory"
    elif config.gpu_memory_utilization is not None:
        budget = int(total * config.gpu_memory_utilization) // sharers
        reason = f"{config.gpu_memory_utilization:g} {where}{shared}"
    elif space.kind == "cuda":
        budget = int(total * DEFAULT_CUDA_UTILIZATION)
        reason = f"{DEFAULT_CUDA_UTILIZATION:g} {where}"
    else:
        budget = int(free * DEFAULT_CPU_SHARE_OF_FREE) // sharers
        return budget, f"half of the free memory{shared}"
    missing = budget * sharers - free
    if missing > 0:
        times = f" on each of {sharers} ranks of this machine" if sharers > 1 else ""
        raise DoesNotFit(
            f"{reason} is {format_bytes(budget)}{times}, but only {format_bytes(free)} of "
            f"{format_bytes(total)} are free, {format_bytes(missing)} too few. Lower it or free "
            "memory first.",
            missing_bytes=missing,
        )
    return budget, reason


def _needs(setting: Setting) -> list[RankNeeds]:
    """Of the ranks of one replica."""
    weights = setting.weights
    layouts = tuple(dict.fromkeys([setting.prefill.replica, setting.decode.replica]))
    if setting.num_ranks == 1:  # has its weights straight from the checkpoint, as they are
        arenas: Sequence[int] = [weights.total]
    elif setting.reload == "none":
        arenas = weights.copied(layouts)
    else:
        arenas = weights.arenas(layouts)
    aside = _held_aside(setting, weights, layouts)
    known: dict[Sequence[object], tuple[int, int]] = {}

    def step_bytes(ranges: RankRanges) -> tuple[int, int]:
        alike = _work_key(ranges)
        if alike not in known:
            known[alike] = _work_bytes(setting, ranges), _graph_bytes(setting, ranges)
        return known[alike]

    found = []
    for rank, arena in enumerate(arenas):
        held = [weights.ranges(layout)[rank] for layout in layouts]
        blocks = [_block_bytes(setting, one) for one in held]
        graphs = max(step_bytes(one)[1] for one in held)
        work = max(step_bytes(one)[0] for one in held) + graphs + aside[rank]
        if setting.uses_tier:
            parts = setting.config.tier_block_size // setting.config.block_size
            work += copy_staging_bytes(parts * max(blocks), setting.space.kind)
        if setting.relays:
            work += relay_staging_bytes(blocks[0] + blocks[-1], setting.space.kind)
        found.append(RankNeeds(rank, arena, work, graphs, blocks[0], blocks[-1]))
    return found


def _held_aside(
    setting: Setting, weights: WeightBytes, layouts: tuple[ParallelLayout, ...]
) -> Sequence[int]:
    """By rank, the most that a change of layout reads from its arena at once. From peers that is
    planned to be a layer at most, and close to it; from the host, what a rank has elsewhere."""
    if len(layouts) == 1 or setting.reload == "none":
        return [0] * layouts[0].num_ranks
    if from_peers(setting.config, setting.space.kind):
        return [weights.largest_layer] * layouts[0].num_ranks
    changes = weights.changes((layouts[0], layouts[1]), setting.reload, peers=False)
    return [max(one.aside, other.aside) for one, other in zip(*changes, strict=True)]


def _work_key(ranges: RankRanges) -> Sequence[object]:
    """Equal for ranks whose steps take as much: parts of the same layers, equal but for where they
    begin."""
    return (ranges.layers, *(getattr(ranges, field.name).size for field in fields(ranges)))


def _work_bytes(setting: Setting, ranges: RankRanges) -> int:
    config = setting.config
    saved = 0
    if setting.splits_layers:
        saved = saved_rows_bytes(
            setting.spec, num_tokens=config.step_tokens, element_bytes=setting.element_bytes
        )
    return saved + setting.num_lanes * workspace_bytes(
        setting.spec,
        num_tokens=config.step_tokens,
        num_sampled=config.max_num_seqs,
        max_model_len=setting.wanted_len,
        block_size=config.block_size,
        element_bytes=setting.element_bytes,
        kind=setting.space.kind,
        ranges=ranges,
        triton=setting.native and setting.space.kind == "cuda",
    )


def _graph_bytes(setting: Setting, ranges: RankRanges) -> int:
    """Where decode steps are recorded as CUDA graphs: on ranks that are a stage by themselves."""
    config, spec = setting.config, setting.spec
    whole = ranges.layers.size == spec.num_hidden_layers
    if setting.num_lanes > 1:
        return 0  # a graph runs on the SMs that it was recorded on
    if setting.space.kind != "cuda" or not setting.native or config.enforce_eager or not whole:
        return 0
    return graph_bytes(
        spec,
        num_rows=min(config.max_num_seqs, config.step_tokens),
        max_model_len=setting.wanted_len,
        block_size=config.block_size,
        element_bytes=setting.element_bytes,
        ranges=ranges,
    )


def _block_bytes(setting: Setting, ranges: RankRanges) -> int:
    head_dim, block_size = setting.spec.head_dim, setting.config.block_size
    layers, heads = ranges.layers, ranges.kv_heads
    return PoolShape(layers, heads, 1, block_size, head_dim, setting.kv_element_bytes).nbytes


def _both_pools(setting: Setting, rank: RankNeeds) -> int:
    """Bytes of one block in each pool that there is."""
    return rank.block_bytes + (rank.prefill_block_bytes if setting.uses_tier else 0)


def _pools(setting: Setting, ranks: Sequence[RankNeeds], budget: int) -> tuple[int, int]:
    """Blocks of the prefill and of the decode pool, as many as every rank can hold.

    A prompt holds all its blocks of the prefill pool from its first chunk until it is in the tier.
    So that no stage waits, the pool needs a micro-batch for each stage, and beside it the prompt
    that is being cut and the one on its way to the tier.
    """
    config, least = setting.config, setting.least_blocks
    rooms = [(rank, rank.kv_room(budget)) for rank in ranks]
    prefill_blocks = 0
    if setting.uses_tier:
        flowing = setting.prefill.pp * config.step_tokens + 2 * setting.wanted_len
        # A block of one pool may be many times the other's: answers keep the least they need.
        share = min(
            min(int(room * PREFILL_SHARE_OF_KV), room - least * rank.block_bytes)
            // rank.prefill_block_bytes
            for rank, room in rooms
        )
        prefill_blocks = min(-(-flowing // config.block_size), max(share, least))
    num_blocks = min(
        (room - prefill_blocks * rank.prefill_block_bytes) // rank.block_bytes
        for rank, room in rooms
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
