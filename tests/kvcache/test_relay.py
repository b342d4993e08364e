"""KV goes from prefill pools to decode pools byte by byte, whatever the two layouts, and nothing
else changes; bytes are those that `layout` predicts; a peer that is gone is told.
"""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Sequence

import pytest
import torch

from seesaw.errors import EngineDeadError
from seesaw.kvcache.pool import KVCache
from seesaw.kvcache.relay import BlockRelay, KVRelays, PoolPart, Relayed
from seesaw.layout import ParallelLayout, rank_ranges
from seesaw.layout.relay import relay_pieces, relay_takes
from tests.kvcache.kv_harness import (
    HEAD_DIM,
    Truth,
    layouts_of,
    make_spec,
    pick,
    random_bytes,
    write_to_pool,
)

BLOCK = 16
NUM_BLOCKS = {"prefill": 30, "decode": 40}
WAIT_S = 60.0


class Mail:
    """Ranks of one process, each with a thread of its own: what one sends another receives, in
    order, as a `PeerExchange`."""

    def __init__(self) -> None:
        self._boxes: dict[tuple[int, int], queue.Queue[torch.Tensor]] = {}

    def of(self, rank: int) -> RankMail:
        return RankMail(rank, self)

    def box(self, sender: int, receiver: int) -> queue.Queue[torch.Tensor]:
        # Both ends may be the first to ask, at the same time: `setdefault` gives them the same one.
        return self._boxes.setdefault((sender, receiver), queue.Queue())


class RankMail:
    def __init__(self, rank: int, mail: Mail) -> None:
        self.rank, self.mail = rank, mail

    def exchange(
        self,
        sends: Sequence[tuple[int, torch.Tensor]],
        receives: Sequence[tuple[int, torch.Tensor]],
    ) -> None:
        for peer, x in sends:
            self.mail.box(self.rank, peer).put(x.clone())
        for peer, x in receives:
            got = self.mail.box(peer, self.rank).get(timeout=WAIT_S)
            assert got.shape == x.shape, f"from {peer} to {self.rank}"
            x.copy_(got)


class Ended:
    """What relays of one rank report."""

    def __init__(self) -> None:
        self.done: list[Relayed] = []
        self.failed: list[EngineDeadError] = []
        self.changed = threading.Condition()

    def on_done(self, one: Relayed) -> None:
        with self.changed:
            self.done.append(one)
            self.changed.notify_all()

    def on_error(self, error: EngineDeadError) -> None:
        with self.changed:
            self.failed.append(error)
            self.changed.notify_all()

    def wait(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.done) == count or self.failed, WAIT_S)
        assert not self.failed, self.failed


def pools_of(layout: ParallelLayout, spec, phase: str, dtype: torch.dtype) -> list[PoolPart]:
    """Full of random bytes."""
    parts = []
    for rank in range(layout.num_ranks):
        held = rank_ranges(layout, spec, rank)
        kv = KVCache.allocate(
            held.layers.size, NUM_BLOCKS[phase], held.kv_heads.size, BLOCK, HEAD_DIM, dtype,
            torch.device("cpu"),
        )  # fmt: skip
        noise = random_bytes(kv.pool.nbytes, random.randrange(2**31)).view(dtype)
        kv.pool.copy_(noise.view(kv.pool.shape))
        parts.append(PoolPart(kv, held.layers, held.kv_heads))
    return parts


def held_of(part: PoolPart, truth: Truth) -> torch.Tensor:
    return truth.kv[part.layers.start : part.layers.stop, part.heads.start : part.heads.stop]


def as_bytes(part: PoolPart) -> torch.Tensor:
    return part.kv.pool.view(torch.uint8).clone()


def relay(spec, prefill: ParallelLayout, decode: ParallelLayout, dtype, most_bytes: int) -> None:
    ranks = range(prefill.num_ranks)
    pieces = relay_pieces(prefill, decode, spec)
    sources = pools_of(prefill, spec, "prefill", dtype)
    targets = pools_of(decode, spec, "decode", dtype)
    rng = random.Random(random.randrange(2**31))
    lengths = [1, BLOCK, 5 * BLOCK + 3, rng.randrange(1, 8 * BLOCK)]
    truths = [Truth.random(spec, n, BLOCK, dtype.itemsize, rng.randrange(2**31)) for n in lengths]
    counts = [-(-n // BLOCK) for n in lengths]
    blocks, to_blocks = (iter(pick(NUM_BLOCKS[phase], sum(counts), rng)) for phase in NUM_BLOCKS)
    orders = [
        BlockRelay(index, [next(blocks) for _ in range(n)], [next(to_blocks) for _ in range(n)])
        for index, n in enumerate(counts)
    ]
    expected = []
    for rank in ranks:
        filled = as_bytes(sources[rank])
        for truth, order in zip(truths, orders, strict=True):
            write_to_pool(filled, order.blocks, held_of(sources[rank], truth))
        sources[rank].kv.pool.copy_(filled.view(dtype))
        filled = as_bytes(targets[rank])
        for truth, order in zip(truths, orders, strict=True):
            write_to_pool(filled, order.to_blocks, held_of(targets[rank], truth))
        expected.append((as_bytes(sources[rank]), filled))
    mail, ended = Mail(), [Ended() for _ in ranks]
    relays = [
        KVRelays(
            rank, pieces, sources[rank], targets[rank], mail.of(rank), ended[rank].on_done,
            ended[rank].on_error, most_bytes=most_bytes,
        )
        for rank in ranks
    ]  # fmt: skip
    takes = relay_takes(pieces, BLOCK * HEAD_DIM * dtype.itemsize, len(ranks))
    for rank in rng.sample(ranks, len(ranks)):
        relays[rank].begin(orders[:3])
        relays[rank].begin(orders[3:])
    for rank in ranks:
        ended[rank].wait(len(orders))
        relays[rank].close()
        source, target = expected[rank]
        assert torch.equal(as_bytes(sources[rank]), source), f"rank {rank}: source changed"
        assert torch.equal(as_bytes(targets[rank]), target), f"rank {rank}"
        assert [one.transfer_id for one in ended[rank].done] == [0, 1, 2, 3]
        for one, count in zip(ended[rank].done, counts, strict=True):
            assert one.num_bytes == count * sum(takes[rank].values())
            assert one.peer_bytes == count * takes[rank]["peer"]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("heads", [(9, 3), (8, 8), (4, 1)])
def test_every_pair_of_layouts(heads, num_ranks):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    random.seed(seed)
    spec = make_spec(5, *heads)
    layouts = layouts_of(num_ranks, spec)
    for prefill in layouts:
        for decode in layouts:
            dtype = random.choice([torch.float32, torch.bfloat16])
            # all in one round, or a block in each
            relay(spec, prefill, decode, dtype, random.choice([1 << 24, 1]))


def test_a_peer_that_is_gone_is_told():
    spec = make_spec(4, 4, 2)
    prefill, decode = ParallelLayout(pp=2), ParallelLayout(tp=2)

    class Gone:
        def exchange(self, sends, receives) -> None:
            raise RuntimeError("rank 1 has died")

    ended = Ended()
    source = pools_of(prefill, spec, "prefill", torch.float32)[0]
    target = pools_of(decode, spec, "decode", torch.float32)[0]
    pieces = relay_pieces(prefill, decode, spec)
    relays = KVRelays(0, pieces, source, target, Gone(), ended.on_done, ended.on_error)
    relays.begin([BlockRelay(7, [1], [2])])
    relays.begin([BlockRelay(8, [3], [4])])
    with ended.changed:
        assert ended.changed.wait_for(lambda: ended.failed, WAIT_S)
    assert "rank 1 has died" in str(ended.failed[0])
    relays.close()
    assert not ended.done
    assert len(ended.failed) == 1
