"""How full pools and tier of a scheduler are, and where its requests stand: for those who watch."""

from __future__ import annotations

from dataclasses import dataclass

from seesaw.scheduler.residency import Residency


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Requests by where they are, and blocks held. `reserved_blocks` are free blocks of the decode
    pool that are kept for residents to grow; `largest_blocks` is what the largest request seen so
    far may need of it. The tier's blocks are taken when a prompt is admitted, before it is stored.
    """

    waiting: int
    prefilling: int
    storing: int
    stored: int
    loading: int
    running: int
    prefill_blocks: int
    decode_blocks: int
    reserved_blocks: int
    largest_blocks: int
    tier_blocks: int

    @classmethod
    def of(cls, at: Residency) -> Occupancy:
        decode, prefill = at.pools["decode"], at.pools.get("prefill")
        grows = bool(at.running or at.loading)
        return cls(
            waiting=len(at.waiting),
            prefilling=len(at.prefilling),
            storing=len(at.storing),
            stored=len(at.stored),
            loading=len(at.loading),
            running=len(at.running) + len(at.parked),
            prefill_blocks=0 if prefill is None else prefill.num_blocks - prefill.num_free,
            decode_blocks=decode.num_blocks - decode.num_free,
            reserved_blocks=min(at.reserved_blocks, decode.num_free) if grows else 0,
            largest_blocks=at.largest_blocks,
            tier_blocks=0 if at.tier is None else at.tier.num_used,
        )
