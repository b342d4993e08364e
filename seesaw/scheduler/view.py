"""What a policy sees when it plans a step: requests by where they are, and the room there is.

Reads only; what may be done is `step.py`'s business.
"""

from __future__ import annotations

from seesaw.scheduler.config import SchedulerConfig
from seesaw.scheduler.mix import Mix
from seesaw.scheduler.output import Phase
from seesaw.scheduler.request import Request, RequestStatus
from seesaw.scheduler.residency import Residency


class StepView:
    """The lists of requests, and what is free or will be.

    `waiting` (next first). With a host tier: `prefilling` have blocks of the prefill pool,
    `storing` are on their way to the tier, `stored` are in it (next to be loaded first), `loading`
    are on their way to the decode pool, `relaying` are so straight from the prefill pool. `running`
    (oldest first) have blocks of the decode pool; `parked` run as well, but must be fetched before
    they have a row.
    """

    def __init__(self, residency: Residency, phase: Phase) -> None:
        self.config: SchedulerConfig = residency.config
        self.waiting = residency.waiting
        self.prefilling = residency.prefilling
        self.storing = residency.storing
        self.stored = residency.stored
        self.loading = residency.loading
        self.relaying = residency.relaying
        self.running = residency.running
        self.parked = residency.parked
        tier = self.config.tier
        self.rotation_tokens = 0 if tier is None else tier.rotation_tokens
        self._residency = residency
        self._tier = residency.tier
        self._enter(phase)

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self.stages = self.config.stages(phase)
        self._pool = self._residency.pools[phase]
        self._runs = RequestStatus.PREFILLING if phase == "prefill" else RequestStatus.RUNNING
        self._is_plain = phase == "decode" and self.stages == 1

    @property
    def num_free_blocks(self) -> int:
        """Of the pool of this phase."""
        return self._pool.num_free

    @property
    def blocks_draining(self) -> int:
        """Blocks of this phase's pool that come back by themselves: steps in flight use them or
        draw the last token of who has them, or they are being stored or relayed."""
        ending = (request for request in self.running if request.num_tokens >= request.limit)
        draining = self._residency.draining
        coming = sum(
            len(request.blocks)
            for requests in (draining, self.storing, self.relaying, ending)
            for request in requests
            if request.pool is self._pool
        )
        if self._pool is self._residency.pools["decode"]:
            coming += sum(len(request.relay_blocks) for request in draining)
        return coming

    @property
    def num_free_tier_blocks(self) -> int:
        return 0 if self._tier is None else self._tier.num_free

    @property
    def num_tier_blocks_to_load(self) -> int:
        """Tier blocks of requests that are stored, or on their way in or out: all but those kept
        for prompts under way, those of requests that run from the tier or have ended."""
        if self._tier is None:
            return 0
        others = (*self.prefilling, *self._residency.draining, *self.parked, *self.running)
        return self._tier.num_used - sum(len(request.tier_blocks) for request in others)

    @property
    def num_seats(self) -> int:
        """Requests that run in the decode phase, or will without being admitted or loaded: those
        on their way to the decode pool and those to be relayed."""
        return self._residency.num_seats

    @property
    def num_saved_tokens(self) -> int:
        """Positions between two layers, also of requests that have ended or yielded and of which
        workers have not heard yet."""
        return self._residency.num_saved_tokens

    @property
    def mix(self) -> Mix:
        """Lengths of the latest requests."""
        return self._residency.mix

    @property
    def num_stored_ever(self) -> int:
        """Grows with each request that joins `stored`."""
        return self._residency.num_stored_ever

    @property
    def tier_is_clearing(self) -> bool:
        """Tier blocks come back by themselves: loads are in flight, or requests ended that hold
        some."""
        return bool(self.loading) or any(r.tier_blocks for r in self._residency.draining)

    def tier_blocks_for(self, request: Request) -> int:
        """Tier blocks that the request takes when it is admitted in the prefill phase. None where
        its next token is its last: there is nothing to store then."""
        if self._tier is None or request.num_tokens + 1 >= request.limit:
            return 0
        return self._tier.blocks_for(request.num_tokens)

    def fits_tier(self, request: Request) -> bool:
        """Whether the tier has room for a waiting request now."""
        return self.tier_blocks_for(request) <= self.num_free_tier_blocks

    def can_relay(self, request: Request, *, reserve_blocks: int = 0) -> bool:
        """Whether a waiting request could be admitted in the prefill phase to go straight to the
        decode pool, in which `reserve_blocks` stay free. Not where its next token is its last."""
        tier = self.config.tier
        if tier is None or not tier.relays or request.num_tokens + 1 >= request.limit:
            return False
        pool = self._residency.pools["decode"]
        return (
            pool.blocks_for(request.num_tokens) + reserve_blocks <= pool.num_free
            and self._residency.num_seats < self.config.max_num_seqs
        )

    def has_outgrown(self, request: Request) -> bool:
        """Whether a waiting request, which was computed before, has become too long for the whole
        prefill pool or tier. It can only be admitted in the decode phase."""
        tier = self.config.tier
        return tier is not None and (
            request.num_tokens > tier.prefill_blocks * self.config.block_size
            or self.tier_blocks_for(request) > tier.tier_blocks
        )
