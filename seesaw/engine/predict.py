"""What movements must cost in bytes, from layouts and sizes alone; a run is checked against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from seesaw.engine.build import plan_weights, pool_shape, tier_shape
from seesaw.engine.messages import RankSetup
from seesaw.engine.stats import TransferBytes
from seesaw.layout.kv import KVCopy, owned_heads, transfer_bytes
from seesaw.layout.relay import relay_pieces, relay_takes
from seesaw.layout.reshard import Source
from seesaw.scheduler.output import Phase

RELAYED_FROM: tuple[Source, ...] = ("copy", "peer")


def predict_bytes(setup: RankSetup) -> TransferBytes:
    """Of one replica, whichever of its ranks `setup` is for."""
    ranks = range(setup.num_ranks)
    weights = plan_weights(setup)
    phases: tuple[Phase, ...] = ("prefill", "decode")
    one_block = setup.block_size
    counts = [0] if setup.tier is None else range(setup.tier.block_tokens // one_block + 1)
    store = {
        phase: sum(
            transfer_bytes(
                pool_shape(setup, phase, rank),
                one_block,
                owned_heads(setup.layout(phase), setup.spec, rank).size,
            )
            for rank in ranks
        )
        for phase in phases
    }
    return TransferBytes(
        block_size=one_block,
        store_block_bytes=store,
        load_block_bytes=sum(
            transfer_bytes(pool_shape(setup, "decode", rank), one_block) for rank in ranks
        ),
        tier_block_bytes=0 if setup.tier is None else tier_shape(setup).block_bytes,
        store_pieces={
            phase: [
                sum(_pieces(setup, phase, rank, count, stores=True) for rank in ranks)
                for count in counts
            ]
            for phase in phases
        },
        load_pieces=[
            sum(_pieces(setup, "decode", rank, count, stores=False) for rank in ranks)
            for count in counts
        ],
        relay_block_bytes={
            source: sum(one[source] for one in relay_block_takes(setup)) for source in RELAYED_FROM
        },
        weights_by_phase={
            phase: {str(source): nbytes for source, nbytes in found.items()}
            for phase in phases
            if (found := weights.bytes_by_source(phase))
        },
    )


def relay_block_takes(setup: RankSetup) -> Sequence[Mapping[Source, int]]:
    """By rank what it takes of a block that is relayed."""
    tile_bytes = pool_shape(setup, "prefill", 0).tile_bytes
    pieces = relay_pieces(setup.prefill, setup.decode, setup.spec)
    return relay_takes(pieces, tile_bytes, setup.num_ranks)


def _pieces(setup: RankSetup, phase: Phase, rank: int, num_blocks: int, *, stores: bool) -> int:
    """Runs of bytes of a tier block of which a rank copies the first device blocks."""
    pool = pool_shape(setup, phase, rank)
    heads = owned_heads(setup.layout(phase), setup.spec, rank) if stores else pool.kv_heads
    if not num_blocks or not heads.size:
        return 0
    copy = KVCopy(tier_shape(setup), pool, heads, (), (), 0)
    return sum(1 for _ in copy.runs(num_blocks))
