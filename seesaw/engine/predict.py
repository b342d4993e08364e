"""What movements must cost in bytes, from layouts and sizes alone; a run is checked against it."""

from __future__ import annotations

from seesaw.engine.build import plan_weights, pool_shape, tier_shape
from seesaw.engine.messages import RankSetup
from seesaw.engine.stats import TransferBytes
from seesaw.layout.kv import owned_heads, transfer_bytes
from seesaw.scheduler.output import Phase


def predict_bytes(setup: RankSetup) -> TransferBytes:
    """Of one replica, whichever of its ranks `setup` is for."""
    ranks = range(setup.num_ranks)
    weights = plan_weights(setup)
    phases: tuple[Phase, ...] = ("prefill", "decode")
    one_block = setup.block_size
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
        weights_by_phase={
            phase: {str(source): nbytes for source, nbytes in found.items()}
            for phase in phases
            if (found := weights.bytes_by_source(phase))
        },
    )
