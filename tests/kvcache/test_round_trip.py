"""KV comes back from the host tier as it went in, byte by byte, whatever the two layouts, and
nothing else changes; the bytes moved are those that `layout` predicts.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
import torch

from seesaw.families.spec import ModelSpec
from seesaw.kvcache.tier import HostTier
from seesaw.kvcache.transfer import Engine, KVTransfers
from seesaw.layout import ParallelLayout
from seesaw.layout.kv import PoolShape, TierOrder, transfer_bytes
from tests.kvcache.engines import of_name
from tests.kvcache.kv_harness import (
    Done,
    Rank,
    Truth,
    layouts_of,
    make_ranks,
    make_spec,
    pick,
    pool_bytes,
    random_bytes,
    tier_bytes,
    tier_shape,
    write_to_pool,
    write_to_tier,
)

SIZES = [(16, 16), (16, 64), (16, 256), (32, 64), (32, 256)]  # device block, tier block
MODELS = {
    "9 heads on 3, 9 layers": make_spec(9, 9, 3),
    "28 heads on 4, 8 layers": make_spec(8, 28, 4),
    "8 heads on 8, 10 layers": make_spec(10, 8, 8),
    "4 heads on 1, 3 layers": make_spec(3, 4, 1),
}
ORDERS: tuple[TierOrder, ...] = ("head", "layer", "token")
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=["cpp", "torch", "streams"])
def engine(request: pytest.FixtureRequest, device: str) -> Iterator[Engine | None]:
    if device != "cpu":
        if request.param != "streams":
            pytest.skip("threads copy pools on the CPU")
        yield None
        return
    with of_name(request.param) as engine:
        yield engine


def lengths(block_size: int, tier_block: int, rng: random.Random) -> list[int]:
    """Tokens of requests: one, a whole tier block, partial blocks, several tier blocks."""
    longer = 2 * tier_block + rng.randrange(1, 2 * block_size)
    return [1, tier_block, rng.randrange(1, tier_block + 1), longer]


def of_shape(rank: Rank) -> PoolShape:
    _, num_blocks, _, _, block_size, head_dim = rank.kv.pool.shape
    itemsize = rank.kv.pool.element_size()
    layers, heads = rank.ranges.layers, rank.ranges.kv_heads
    return PoolShape(layers, heads, num_blocks, block_size, head_dim, itemsize)


def ceil(a: int, b: int) -> int:
    return -(-a // b)


class Replica:
    """Ranks of one layout, what their pools must hold, and the transfers they were asked for."""

    def __init__(self, ranks: list[Rank], ids: Iterator[int]) -> None:
        self.ranks = ranks
        self.expected = [pool_bytes(rank) for rank in ranks]
        self._ids = ids
        self._asked: list[tuple[Rank, int, int]] = []

    def put(self, truths: list[Truth], blocks: list[list[int]]) -> None:
        """As if they had been computed."""
        for rank, expected in zip(self.ranks, self.expected, strict=True):
            for truth, own in zip(truths, blocks, strict=True):
                write_to_pool(expected, own, truth.of(rank.ranges))
            rank.kv.pool.copy_(expected.view(rank.kv.pool.dtype))

    def store(self, rank: Rank, truth: Truth, blocks: list[int], tier_blocks: list[int]) -> None:
        rank.store(self._ask(rank, truth, rank.owned.size), blocks, tier_blocks, truth.num_tokens)

    def load(self, rank: Rank, truth: Truth, blocks: list[int], tier_blocks: list[int]) -> None:
        rank.load(self._ask(rank, truth, None), blocks, tier_blocks, truth.num_tokens)

    def expect_loaded(self, truth: Truth, blocks: list[int]) -> None:
        for rank, expected in zip(self.ranks, self.expected, strict=True):
            write_to_pool(expected, blocks, truth.of(rank.ranges))

    def _ask(self, rank: Rank, truth: Truth, num_heads: int | None) -> int:
        transfer_id = next(self._ids)
        num_bytes = transfer_bytes(of_shape(rank), truth.num_tokens, num_heads)
        self._asked.append((rank, transfer_id, num_bytes))
        return transfer_id

    def finish(self) -> int:
        """Wait; each transfer is reported once with its bytes. Returns their sum."""
        for rank in self.ranks:
            rank.transfers.drain()
        for rank, transfer_id, num_bytes in self._asked:
            assert rank.done.bytes_of(transfer_id) == [num_bytes]
        total = sum(num_bytes for _, _, num_bytes in self._asked)
        self._asked.clear()
        return total

    def assert_pools(self) -> None:
        for rank, expected in zip(self.ranks, self.expected, strict=True):
            assert torch.equal(pool_bytes(rank), expected), rank.ranges


def round_trip(
    spec: ModelSpec, layouts: list[ParallelLayout], block_size: int, tier_block: int,
    dtype: torch.dtype, engine: Engine | None, device: str, seed: int, order: TierOrder,
) -> None:  # fmt: skip
    """Every layout stores all requests, and each other one loads them."""
    rng = random.Random(seed)
    tokens = lengths(block_size, tier_block, rng)
    truths = [
        Truth.random(spec, n, block_size, dtype.itemsize, rng.randrange(2**31)) for n in tokens
    ]
    num_blocks = 3 + sum(ceil(n, block_size) for n in tokens)
    num_tier_blocks = 2 + sum(ceil(n, tier_block) for n in tokens)
    shape = tier_shape(spec, num_tier_blocks, tier_block, dtype.itemsize, order, block_size)
    tier = HostTier.create(shape)
    tier.commit(num_tier_blocks)
    done = Done()
    transfers = KVTransfers(tier, done, torch.device(device), 2, engine=engine)
    ids = itertools.count()
    whole = sum(ceil(n, block_size) * block_size for n in tokens)
    whole_bytes = whole * spec.kv_bytes_per_token(dtype.itemsize)

    def replica(layout: ParallelLayout) -> tuple[Replica, list[list[int]]]:
        ranks = make_ranks(
            layout, spec, tier, num_blocks=num_blocks, block_size=block_size, dtype=dtype,
            seed=rng.randrange(2**20), transfers=transfers, done=done, device=device,
        )  # fmt: skip
        return Replica(ranks, ids), cut([ceil(n, block_size) for n in tokens], num_blocks, rng)

    for prefill in layouts:
        tier.tensor.copy_(random_bytes(tier.tensor.nbytes, rng.randrange(2**31)))
        expected_tier = tier_bytes(tier).clone()
        writers, blocks = replica(prefill)
        tier_blocks = cut([ceil(n, tier_block) for n in tokens], num_tier_blocks, rng)
        writers.put(truths, blocks)
        for truth, theirs in zip(truths, tier_blocks, strict=True):
            write_to_tier(expected_tier, theirs, truth.kv)
        jobs = list(itertools.product(writers.ranks, range(len(truths))))
        rng.shuffle(jobs)
        for rank, i in jobs:
            writers.store(rank, truths[i], blocks[i], tier_blocks[i])
        assert writers.finish() == whole_bytes  # replicated heads are stored once
        writers.assert_pools()
        assert torch.equal(tier_bytes(tier), expected_tier)
        for decode in layouts:
            readers, blocks = replica(decode)
            jobs = list(itertools.product(readers.ranks, range(len(truths))))
            rng.shuffle(jobs)
            for rank, i in jobs:
                readers.load(rank, truths[i], blocks[i], tier_blocks[i])
            # Beyond one rank per KV head, each rank loads one head.
            held = max(decode.tp, spec.num_key_value_heads)
            assert readers.finish() * spec.num_key_value_heads == whole_bytes * held
            for truth, own in zip(truths, blocks, strict=True):
                readers.expect_loaded(truth, own)
            readers.assert_pools()
        assert torch.equal(tier_bytes(tier), expected_tier)
    transfers.close()
    tier.close()


def cut(counts: list[int], total: int, rng: random.Random) -> list[list[int]]:
    """Blocks of each request, all different, in random places and order."""
    blocks = iter(pick(total, sum(counts), rng))
    return [list(itertools.islice(blocks, count)) for count in counts]


@pytest.mark.parametrize("num_ranks", range(1, 9))
@pytest.mark.parametrize("model", MODELS)
def test_every_pair_of_layouts(
    model: str, num_ranks: int, engine: Engine | None, device: str
) -> None:
    spec = MODELS[model]
    layouts = layouts_of(num_ranks, spec)
    if not layouts:
        pytest.skip(f"the model does not go on {num_ranks} ranks")
    sizes = SIZES if engine == "cpp" else [SIZES[num_ranks % len(SIZES)]]
    for index, (block_size, tier_block) in enumerate(sizes):
        seed = random.randrange(2**32)
        order = ORDERS[(index + num_ranks + list(MODELS).index(model)) % 3]
        print(f"seed {seed}, blocks of {block_size} and {tier_block} tokens, order {order}")
        dtype = DTYPES[(index + num_ranks) % 2]
        round_trip(spec, layouts, block_size, tier_block, dtype, engine, device, seed, order)


@pytest.mark.parametrize("order", ["head", "layer", "token"])
def test_every_order_of_the_tier(order: TierOrder, engine: Engine | None, device: str) -> None:
    """Uneven heads, replicated heads, parts of tier blocks."""
    spec = MODELS["9 heads on 3, 9 layers"]
    for num_ranks in (2, 4):
        seed = random.randrange(2**32)
        print(f"seed {seed}")
        layouts = layouts_of(num_ranks, spec)
        round_trip(spec, layouts, 16, 64, torch.float32, engine, device, seed, order)


def test_requests_come_and_go(engine: Engine | None, device: str) -> None:
    """Stores, loads and the use of freed tier blocks at once, each rank at its own pace."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    spec, block_size, tier_block, dtype = make_spec(5, 9, 3), 16, 64, torch.float32
    tier = HostTier.create(tier_shape(spec, 7, tier_block, dtype.itemsize))
    ids = itertools.count()

    def replica(layout: ParallelLayout, num_blocks: int) -> Replica:
        ranks = make_ranks(
            layout, spec, tier, num_blocks=num_blocks, block_size=block_size, dtype=dtype,
            seed=rng.randrange(2**20), engine=engine, device=device,
        )  # fmt: skip
        return Replica(ranks, ids)

    writers = replica(ParallelLayout(pp=4), 60)
    readers = replica(ParallelLayout(tp=4), 400)
    expected_tier = tier_bytes(tier).clone()
    reader_blocks = pick(400, 400, rng)
    in_tier: list[tuple[Truth, list[int]]] = []
    for _ in range(40):
        # Load about half of what is there, while new ones are stored to blocks that are free.
        rng.shuffle(in_tier)
        leaving, in_tier = in_tier[: len(in_tier) // 2 + 1], in_tier[len(in_tier) // 2 + 1 :]
        loads = []
        for truth, theirs in leaving:
            count = ceil(truth.num_tokens, block_size)
            if len(reader_blocks) < count:
                taken = {block for _, own, _ in loads for block in own}
                reader_blocks = [block for block in pick(400, 400, rng) if block not in taken]
                readers.finish()
                readers.assert_pools()
            loads.append((truth, [reader_blocks.pop() for _ in range(count)], theirs))
        used = [block for _, theirs in (*leaving, *in_tier) for block in theirs]
        free = [block for block in range(7) if block not in used]
        stores = []
        writer_blocks = pick(60, 60, rng)
        while free:
            n = rng.randrange(1, len(free) * tier_block + 1)
            theirs = [free.pop(rng.randrange(len(free))) for _ in range(ceil(n, tier_block))]
            own = [writer_blocks.pop() for _ in range(ceil(n, block_size))]
            truth = Truth.random(spec, n, block_size, dtype.itemsize, rng.randrange(2**31))
            write_to_tier(expected_tier, theirs, truth.kv)
            stores.append((truth, own, theirs))
        writers.put([store[0] for store in stores], [store[1] for store in stores])
        jobs = [(readers.load, rank, *load) for load in loads for rank in readers.ranks]
        jobs += [(writers.store, rank, *store) for store in stores for rank in writers.ranks]
        rng.shuffle(jobs)
        for begin, *job in jobs:
            begin(*job)
        for truth, own, _ in loads:
            readers.expect_loaded(truth, own)
        writers.finish()
        readers.finish()
        in_tier += [(truth, theirs) for truth, _, theirs in stores]
        assert torch.equal(tier_bytes(tier), expected_tier)
    writers.assert_pools()
    readers.assert_pools()
    for rank in (*writers.ranks, *readers.ranks):
        moved = [num_bytes for _, num_bytes, _ in rank.done.reports]
        counted = rank.transfers.stores if rank in writers.ranks else rank.transfers.loads
        assert (counted.transfers, counted.num_bytes) == (len(moved), sum(moved))
        rank.transfers.close()
    tier.close()
