"""Replicas of pools around one host tier, full of random bytes, for tests of stores and loads."""

from __future__ import annotations

import gc
import math
import os
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from seesaw.families.spec import LayerSpec, ModelSpec, RopeSpec
from seesaw.kvcache.pool import KVCache
from seesaw.kvcache.tier import HostTier
from seesaw.kvcache.transfer import Engine, KVTransfers
from seesaw.layout import ParallelLayout, RankRanges, rank_ranges
from seesaw.layout.kv import TierOrder, TierShape, owned_heads
from seesaw.layout.ranges import Range

HEAD_DIM = 4


def make_spec(num_layers: int, query_heads: int, kv_heads: int) -> ModelSpec:
    layer = LayerSpec(sliding_window=None, rope=RopeSpec(theta=10000.0))
    return ModelSpec(
        family="llama", architecture="LlamaForCausalLM", hidden_size=query_heads * HEAD_DIM,
        intermediate_size=64, num_hidden_layers=num_layers, num_attention_heads=query_heads,
        num_key_value_heads=kv_heads, head_dim=HEAD_DIM, vocab_size=64,
        max_position_embeddings=4096, rms_norm_eps=1e-5, tie_word_embeddings=True,
        torch_dtype="float32", layers=(layer,) * num_layers,
    )  # fmt: skip


def layouts_of(num_ranks: int, spec: ModelSpec) -> list[ParallelLayout]:
    """All tp x pp of `num_ranks` that fit the model."""
    return [
        ParallelLayout(tp=tp, pp=num_ranks // tp)
        for tp in range(1, num_ranks + 1)
        if num_ranks % tp == 0
        and tp <= spec.num_attention_heads
        and num_ranks // tp <= spec.num_hidden_layers
    ]


def random_bytes(nbytes: int, seed: int) -> torch.Tensor:
    """uint8; any pattern, NaN of all kinds included."""
    return torch.frombuffer(bytearray(random.Random(seed).randbytes(nbytes)), dtype=torch.uint8)


@dataclass
class Done:
    """What `on_done` was told, in its order."""

    reports: list[tuple[int, int, float]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, transfer_id: int, num_bytes: int, seconds: float) -> None:
        with self.lock:
            self.reports.append((transfer_id, num_bytes, seconds))

    def bytes_of(self, transfer_id: int) -> list[int]:
        return [num_bytes for seen, num_bytes, _ in self.reports if seen == transfer_id]


@dataclass
class Rank:
    """One rank's pool in one layout, and the transfers that move it."""

    ranges: RankRanges
    owned: Range
    kv: KVCache
    transfers: KVTransfers
    done: Done

    def store(self, transfer_id: int, blocks: Sequence[int], tier: Sequence[int], n: int) -> None:
        """All layers at once, or by groups of them, as prompts are while they are computed."""
        layers = self.ranges.layers
        rng = random.Random(f"{transfer_id} {blocks} {tier}")
        group = rng.randrange(1, layers.size + 2)
        parts: list[Range | None] = [None]
        if group <= layers.size:
            starts = range(layers.start, layers.stop, group)
            parts = [Range(start, min(start + group, layers.stop)) for start in starts]
            rng.shuffle(parts)
        for part in parts:
            self.transfers.store(
                transfer_id, self.kv, layers, self.owned, self.ranges.kv_heads,
                blocks, tier, n, part=part,
            )  # fmt: skip

    def load(self, transfer_id: int, blocks: Sequence[int], tier: Sequence[int], n: int) -> None:
        heads = self.ranges.kv_heads
        self.transfers.load(transfer_id, self.kv, self.ranges.layers, heads, heads, blocks, tier, n)


def make_ranks(
    layout: ParallelLayout, spec: ModelSpec, tier: HostTier, *, num_blocks: int, block_size: int,
    dtype: torch.dtype, seed: int, transfers: KVTransfers | None = None, done: Done | None = None,
    engine: Engine | None = None, device: str = "cpu",
) -> list[Rank]:  # fmt: skip
    """The ranks of a replica, pools full of random bytes, each with transfers of its own unless
    `transfers` (with its `done`) are given."""
    ranks = []
    for rank in range(layout.num_ranks):
        ranges = rank_ranges(layout, spec, rank)
        kv = KVCache.allocate(
            ranges.layers.size, num_blocks, ranges.kv_heads.size, block_size, HEAD_DIM,
            dtype, torch.device(device),
        )  # fmt: skip
        noise = random_bytes(kv.pool.nbytes, seed * 100 + rank).view(dtype)
        kv.pool.copy_(noise.view(kv.pool.shape))
        own_done = done or Done()
        own = transfers or KVTransfers(tier, own_done, torch.device(device), 2, engine=engine)
        ranks.append(Rank(ranges, owned_heads(layout, spec, rank), kv, own, own_done))
    return ranks


def tier_shape(
    spec: ModelSpec, num_blocks: int, block_tokens: int, itemsize: int, order: TierOrder = "head",
    part_tokens: int = 0,
) -> TierShape:  # fmt: skip
    return TierShape(
        num_blocks, spec.num_key_value_heads, spec.num_hidden_layers, block_tokens, HEAD_DIM,
        itemsize, order, part_tokens,
    )  # fmt: skip


@dataclass
class Truth:
    """KV of one request as the model sees it, `[layer][head][k|v][position][bytes of a head]`, of
    whole device blocks."""

    num_tokens: int
    kv: torch.Tensor

    @classmethod
    def random(
        cls, spec: ModelSpec, num_tokens: int, block_size: int, itemsize: int, seed: int
    ) -> Truth:
        length = -(-num_tokens // block_size) * block_size
        shape = (
            spec.num_hidden_layers, spec.num_key_value_heads, 2, length, HEAD_DIM * itemsize,
        )  # fmt: skip
        return cls(num_tokens, random_bytes(math.prod(shape), seed).view(shape))

    def of(self, ranges: RankRanges) -> torch.Tensor:
        layers, heads = ranges.layers, ranges.kv_heads
        return self.kv[layers.start : layers.stop, heads.start : heads.stop]


def write_to_pool(pool: torch.Tensor, blocks: Sequence[int], kv: torch.Tensor) -> None:
    """`kv` as in `Truth`, into a pool of bytes, one block after another."""
    block_size = pool.shape[4]
    for index, block in enumerate(blocks):
        pool[:, block] = kv[:, :, :, index * block_size : (index + 1) * block_size]


def write_to_tier(tier: torch.Tensor, tier_blocks: Sequence[int], kv: torch.Tensor) -> None:
    """`kv` of all layers and heads, into a tier of bytes, part by part of tier blocks."""
    parts, tokens = tier.shape[1], tier.shape[5]
    for index, start in enumerate(range(0, kv.shape[3], tokens)):
        part = kv[:, :, :, start : start + tokens].transpose(0, 1)
        tier[tier_blocks[index // parts], index % parts, :, :, :, : part.shape[3]] = part


def tier_bytes(tier: HostTier) -> torch.Tensor:
    """`[block][part][head][layer][k|v][tokens][bytes of a head]`, a view, whatever the order."""
    shape = tier.shape
    width = shape.head_dim * shape.element_bytes
    heads, layers = shape.num_kv_heads, shape.num_layers
    if shape.order == "head":
        return tier.tensor.view(-1, 1, heads, layers, 2, shape.block_tokens, width)
    parts = shape.block_tokens // shape.part_tokens if shape.order == "token" else 1
    view = tier.tensor.view(-1, parts, layers, heads, 2, shape.block_tokens // parts, width)
    return view.transpose(2, 3)


def pool_bytes(rank: Rank) -> torch.Tensor:
    """A copy, uint8, on the CPU."""
    return rank.kv.pool.cpu().view(torch.uint8).clone()


def pick(total: int, count: int, rng: random.Random) -> list[int]:
    """Blocks in random places, in random order."""
    return rng.sample(range(total), count)


def inode_of(tier: HostTier) -> int:
    """By which its mappings are told from those of other tiers, also once it is closed."""
    return os.fstat(tier.fd).st_ino


def mappings_of(inode: int) -> int:
    """How often this process maps that tier, without what only a cycle keeps."""
    gc.collect()
    lines = Path("/proc/self/maps").read_text().splitlines()
    # address, permissions, offset, device, inode, name
    mapped = [line.split() for line in lines if "seesaw-kv-tier" in line]
    return sum(int(fields[4]) == inode for fields in mapped)
