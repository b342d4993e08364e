"""Replicas of pools around one host tier, filled with random bytes, for tests of stores and loads."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from seesaw.families.spec import LayerSpec, ModelSpec, RopeSpec
from seesaw.kvcache.pool import KVCache
from seesaw.kvcache.tier import HostTier
from seesaw.kvcache.transfer import KVTransfers
from seesaw.layout import ParallelLayout, RankRanges, rank_ranges
from seesaw.layout.kv import TierShape, owned_heads
from seesaw.layout.ranges import Range

Engine = Literal["cpp", "torch"]
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
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=generator)


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.cpu().contiguous().view(torch.uint8)


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
        self.transfers.store(
            transfer_id, self.kv, self.ranges.layers, self.owned, self.ranges.kv_heads,
            blocks, tier, n,
        )  # fmt: skip

    def load(self, transfer_id: int, blocks: Sequence[int], tier: Sequence[int], n: int) -> None:
        heads = self.ranges.kv_heads
        self.transfers.load(transfer_id, self.kv, self.ranges.layers, heads, heads, blocks, tier, n)


def make_ranks(
    layout: ParallelLayout, spec: ModelSpec, tier: HostTier, *, num_blocks: int, block_size: int,
    dtype: torch.dtype, engine: Engine, seed: int, device: str = "cpu",
) -> list[Rank]:  # fmt: skip
    """The ranks of a replica, pools full of random bytes."""
    ranks = []
    for rank in range(layout.num_ranks):
        ranges = rank_ranges(layout, spec, rank)
        kv = KVCache.allocate(
            ranges.layers.size, num_blocks, ranges.kv_heads.size, block_size, HEAD_DIM,
            dtype, torch.device(device),
        )  # fmt: skip
        noise = random_bytes(kv.pool.nbytes, seed * 100 + rank).view(dtype)
        kv.pool.copy_(noise.view(kv.pool.shape))
        done = Done()
        transfers = KVTransfers(tier, done, torch.device(device), 2, engine=engine)
        ranks.append(Rank(ranges, owned_heads(layout, spec, rank), kv, transfers, done))
    return ranks


def tier_shape(spec: ModelSpec, num_blocks: int, block_tokens: int, itemsize: int) -> TierShape:
    return TierShape(
        num_blocks, spec.num_key_value_heads, spec.num_hidden_layers, block_tokens, HEAD_DIM,
        itemsize,
    )  # fmt: skip


def positions(kv_block_view: torch.Tensor) -> torch.Tensor:
    """Bytes `[layer][head][k|v][position][...]` of a request from its blocks
    `[layer][block][head][k|v][block_size][head_dim]`, position by position."""
    return as_bytes(kv_block_view.permute(0, 2, 3, 1, 4, 5).flatten(3, 4))


def pick(total: int, count: int, rng: random.Random) -> list[int]:
    """Blocks in random places, in random order."""
    return rng.sample(range(total), count)
