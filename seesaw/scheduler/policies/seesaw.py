"""Seesaw's schedule: phases of prefill and of decode, with as few transitions as can be.

The paper's section 4.2 (MLSys 2025).

Prompts are prefilled back to back and go to the host tier until it cannot take the next one; then
residents decode, and loads from the tier refill the decode pool, until the tier is drained. Loads
run in both phases. Residents stay where they are when the phase changes. Where prompts may be
relayed, those that would be loaded next anyway go straight to the decode pool.

Tail mode spares the last requests transitions that they cannot repay: a few prompts that are left
once the tier is drained are prefilled in the decode layout, beside the rows that decode; and once
no prompt waits, the longest answers to come are loaded first, so that they do not run alone at the
end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from seesaw.errors import ConfigError
from seesaw.plan.pair_times import PairTimes
from seesaw.scheduler.policies import rotation
from seesaw.scheduler.policies.redecide import Redecider
from seesaw.scheduler.policies.rows import balance_prompts, run_residents
from seesaw.scheduler.request import Request
from seesaw.scheduler.step import StepBuilder

ANNOUNCED_STEPS = 3
"""Steps of prefill: those in flight in two stages, and one more."""

Switch = Literal["minimal", "prefill-first", "decode-first"]


@dataclass(frozen=True, kw_only=True)
class SeesawOptions:
    switch: Switch = field(
        default="minimal",
        metadata={
            "help": "when decode gives way to prefill: minimal = when the host tier is drained to "
            "the low mark; prefill-first = as soon as a prompt fits the tier; decode-first = when "
            "nothing is left to decode"
        },
    )
    low_mark: float = field(
        default=0.0,
        metadata={
            "help": "fraction of the host tier that may still be full when prefill begins again"
        },
    )
    load_watermark: float = field(
        default=0.05,
        metadata={"help": "fraction of the decode pool's blocks kept free of loads"},
    )
    tail: bool = field(
        default=True,
        metadata={
            "help": "prefill a few last prompts in the decode layout instead of two transitions, "
            "and load the longest answers first once no prompt waits"
        },
    )
    tail_tokens: int = field(
        default=0,
        metadata={"help": "most prompt tokens of such a tail; 0 = the step's budget"},
    )

    redecide: bool = field(
        default=True,
        metadata={
            "help": "go on in the decode layout alone while the lengths of requests make that "
            "faster, where seesaw chose the layouts (--layouts auto)"
        },
    )

    def __post_init__(self) -> None:
        if not isinstance(self.redecide, bool):
            raise ConfigError(f"redecide={self.redecide!r}: expected True or False.")
        if self.switch not in get_args(Switch):
            known = ", ".join(get_args(Switch))
            raise ConfigError(f"switch={self.switch!r}: expected one of {known}.")
        if not isinstance(self.tail, bool):
            raise ConfigError(f"tail={self.tail!r}: expected True or False.")
        tokens = self.tail_tokens
        if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0:
            raise ConfigError(
                f"tail_tokens={tokens!r}: expected tokens, or 0 for the step's budget."
            )
        for name in ("low_mark", "load_watermark"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0 <= value < 1:
                raise ConfigError(f"{name}={value!r}: expected a fraction from 0 to below 1.")


class Seesaw:
    Options: type[Any] = SeesawOptions
    uses_tier = True

    def __init__(self, options: SeesawOptions) -> None:
        self._switch = options.switch
        self._low_mark = options.low_mark
        self._watermark = options.load_watermark
        self._tail = options.tail
        self._tail_tokens = options.tail_tokens
        self._sorted_at = -1
        self._may_redecide = options.redecide
        self._redecider: Redecider | None = None

    def redecide_by(self, times: PairTimes) -> None:
        """Decide while running, by what a plan has predicted, whether both layouts go on taking
        turns."""
        if self._may_redecide:
            self._redecider = Redecider(times)

    def plan(self, step: StepBuilder) -> None:
        assert step.config.tier is not None, "policy 'seesaw' needs a host tier"
        if step.phase == "prefill":
            self._load(step)
            if self.leaves_prefill(step):
                step.switch()
        elif self.prompt_fits(step) and self.wants_prefill(step) and not self.is_tail(step):
            step.switch()
        if step.phase == "prefill":
            self._prefill(step)
            if self.leaves_soon(step):
                step.announce("decode")
        else:
            self._decode(step)
            if step.waiting and not step.stored and not self.is_tail(step):
                step.announce("prefill")

    # -- when to switch -------------------------------------------------------------------------

    def leaves_prefill(self, step: StepBuilder) -> bool:
        """No prompt waits and something is there to decode, or the tier cannot take the next one.

        Room that comes by itself is waited for: it costs less than coming back.
        """
        if any(request.num_left for request in step.prefilling):
            return False
        if not step.waiting:
            return _has_work(step)
        request = step.waiting[0]
        if step.has_outgrown(request):
            return True
        return not (self._has_room(step, request) or step.tier_is_clearing)

    def leaves_soon(self, step: StepBuilder) -> bool:
        """Whether prompts run out, or the tier is full, within the next ANNOUNCED_STEPS steps."""
        tokens = ANNOUNCED_STEPS * step.config.max_num_batched_tokens
        tokens -= sum(request.num_left for request in step.prefilling)
        free = step.num_free_tier_blocks
        for request in step.waiting:
            if tokens < 0:
                break
            free -= step.tier_blocks_for(request)
            if free < 0:
                return True
            tokens -= request.num_tokens
        return tokens >= 0

    def prompt_fits(self, step: StepBuilder) -> bool:
        """Whether prefill would have something to do."""
        if any(request.num_left for request in step.prefilling):
            return True
        if not step.waiting:
            return False
        request = step.waiting[0]
        return self._has_room(step, request) and not step.has_outgrown(request)

    def _has_room(self, step: StepBuilder, request: Request) -> bool:
        """For its KV once it is computed."""
        return step.fits_tier(request) or self._relays(step, request)

    def _relays(self, step: StepBuilder, request: Request) -> bool:
        """Whether a waiting prompt would be the next in the decode pool, and fits it now."""
        stored = (
            step.parked
            or step.stored
            or step.storing
            or any(one.tier_blocks for one in step.prefilling)
        )
        return not stored and step.can_relay(request, reserve_blocks=self._reserve(step))

    def wants_prefill(self, step: StepBuilder) -> bool:
        """Whether decode gives way, where a prompt fits."""
        if self._switch == "prefill-first":
            return True
        if self._switch == "decode-first":
            return not _has_work(step)
        return self.is_drained(step)

    def is_drained(self, step: StepBuilder) -> bool:
        """The tier holds no more than its low mark for the decode pool."""
        tier = step.config.tier
        assert tier is not None, "policy 'seesaw' needs a host tier"
        return step.num_tier_blocks_to_load <= self._low_mark * tier.tier_blocks

    def is_tail(self, step: StepBuilder) -> bool:
        """What waits costs less than two transitions: one step's tokens, unless set otherwise, or
        all where the decode layout alone is the faster way to go on."""
        if step.prefilling or not self.is_drained(step):
            return False
        if self._redecider is not None and self._redecider.decodes_only(step):
            return True
        if not self._tail:
            return False
        left = self._tail_tokens or step.config.max_num_batched_tokens
        for request in step.waiting:
            left -= request.num_tokens
            if left < 0:
                return False
        return True

    # -- what to do in a phase ------------------------------------------------------------------

    def _prefill(self, step: StepBuilder) -> None:
        chunk = step.config.max_num_batched_tokens
        balance_prompts(step, step.prefilling)
        for request in step.prefilling:
            step.schedule(request, chunk)
        while step.waiting and step.tokens_left:
            request = step.waiting[0]
            if step.has_outgrown(request):
                return
            if not step.admit(request, relay=self._relays(step, request)):
                return
            step.schedule(request, chunk)

    def _decode(self, step: StepBuilder) -> None:
        chunk = step.config.max_num_batched_tokens
        if step.rotation_tokens:
            self._load(step)
            short = rotation.run_in_turns(step, chunk, self._reserve(step))
        else:
            short = run_residents(step, chunk)
        if short:
            return  # blocks are short: nobody comes in
        is_tail = self.is_tail(step)
        if not step.rotation_tokens:
            self._load(step)
        while step.waiting and step.tokens_left:
            request = step.waiting[0]
            if not (is_tail or step.has_outgrown(request)):
                return
            if not step.admit(request, reserve_blocks=self._reserve(step)):
                return
            step.schedule(request, chunk)

    def _load(self, step: StepBuilder) -> None:
        """As many stored requests as the decode pool has room for."""
        if self._tail and not step.waiting and self._sorted_at != step.num_stored_ever:
            step.stored.sort(key=_tokens_to_come, reverse=True)
            self._sorted_at = step.num_stored_ever
        if step.rotation_tokens:
            rotation.join(step, self._reserve(step))
            if step.phase == "prefill":
                rotation.fetch(step, step.parked.copy(), self._reserve(step))
            return
        while step.stored and step.load(step.stored[0], reserve_blocks=self._reserve(step)):
            pass

    def _reserve(self, step: StepBuilder) -> int:
        """Blocks kept for residents to grow. None where there is nobody to keep them for: the
        next one may need them all."""
        if not step.num_seats:
            return 0
        return math.ceil(self._watermark * step.config.num_blocks)


def _has_work(step: StepBuilder) -> bool:
    """Something is in the decode pool, or in the tier, or on its way there."""
    return bool(step.storing or step.stored or step.num_seats)


def _tokens_to_come(request: Request) -> int:
    return request.limit - len(request.tokens)
