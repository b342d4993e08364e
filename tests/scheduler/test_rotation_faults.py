"""Faults in how running requests take turns that random traces must find: each takes the place of a
method while it is planted, and does what an honest mistake would."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from seesaw.scheduler.blocks import BlockPool
from seesaw.scheduler.request import Request, RequestStatus
from seesaw.scheduler.residency import Residency
from seesaw.scheduler.step import StepBuilder
from tests.scheduler.player import Player
from tests.scheduler.traces import TIER_PROFILES, random_trace

MOST_TRACES = 1500
PROFILE = TIER_PROFILES["rotation"]

Method = Callable[..., Any]


def _free_tier_early(method: Method) -> Method:
    """When a request is fetched: it is still loaded from there."""

    def load(self: Residency, request: Request, *rest: Any) -> Any:
        order = method(self, request, *rest)
        if request.status is RequestStatus.RUNNING:
            self._release_tier(request)
        return order

    return load


def _nothing_before(method: Method) -> Method:
    return lambda self, *rest: method(self, *rest)._replace(after=())


def _readers_only(method: Method) -> Method:
    """A load waits for who reads its blocks, not for what the request's own stores write."""

    def load(self: Residency, request: Request, blocks: list[int], *rest: Any) -> Any:
        after = self.pools["decode"].readers(blocks)
        return method(self, request, blocks, *rest)._replace(after=tuple(sorted(after)))

    return load


def _no_reader(method: Method) -> Method:
    """Blocks are free at once, and nobody knows that a store still reads them."""

    def release_read(self: BlockPool, blocks: list[int], transfer_id: int) -> None:
        method(self, blocks, transfer_id)
        self.was_read(transfer_id)

    return release_read


def _a_block_later(method: Method) -> Method:
    def park(self: Residency, request: Request) -> Any:
        assert self.tier is not None
        if request.num_in_tier and request.num_in_tier + self.tier.block_size < (
            request.num_computed
        ):
            request.num_in_tier += self.tier.block_size
        return method(self, request)

    return park


def _stays_known(method: Method) -> Method:
    """Who yields leaves the tier, and still counts as being in it."""

    def release_tier(self: Residency, request: Request) -> None:
        known = request.num_in_tier
        method(self, request)
        request.num_in_tier = known

    return release_tier


def _parked_twice(method: Method) -> Method:
    """In one step."""

    def close(self: StepBuilder) -> None:
        again = [one for one in self._parking if one.status is RequestStatus.RUNNING][:1]
        method(self)
        for request in again:
            self._output.stores.append(self._residency.park(request))

    return close


def _to_the_end(_: Method) -> Method:
    """Also who draws its last token."""

    def park(self: StepBuilder, request: Request) -> bool:
        tier, done = self._tier, request.num_computed
        if tier is None or done <= request.num_in_tier or request in self._parking:
            return False
        count = tier.blocks_for(done) - len(request.tier_blocks)
        if count > tier.num_free:
            return False
        request.tier_blocks += tier.allocate(count)
        self._parking.append(request)
        return True

    return park


def _no_seat(method: Method) -> Method:
    """Those that are parked take none."""
    return property(  # type: ignore[return-value]
        lambda self: (
            sum(map(len, (self.relaying, self.loading, self.running)))
            + sum(1 for request in self.prefilling if request.relay_blocks)
        )
    )


PLANTED: dict[str, tuple[type[Any], str, Callable[[Method], Method]]] = {
    "tier blocks are free while they are loaded from": (Residency, "load", _free_tier_early),
    "nothing is awaited": (StepBuilder, "_await", lambda _: lambda self, transfers: None),
    "loads come after nothing": (Residency, "load", _nothing_before),
    "loads do not come after their own stores": (Residency, "load", _readers_only),
    "blocks that are read count as free of readers": (BlockPool, "release_read", _no_reader),
    "a store begins a block too late": (Residency, "park", _a_block_later),
    "what has left the tier is counted": (Residency, "_release_tier", _stays_known),
    "parked twice": (StepBuilder, "close", _parked_twice),
    "parked though it draws its last token": (StepBuilder, "park", _to_the_end),
    "who is parked takes no seat": (Residency, "num_seats", _no_seat),
}


def traces_until_found(name: str) -> int:
    """How many fresh traces it took; MOST_TRACES + 1 where none of so many found it."""
    owner, method, make = PLANTED[name]
    base = random.SystemRandom().randrange(2**48)
    with mock.patch.object(owner, method, make(getattr(owner, method))):
        for count in range(MOST_TRACES):
            try:
                Player(random_trace(random.Random(base + count), PROFILE)).play()
            except Exception:
                return count + 1
    return MOST_TRACES + 1


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(name: str) -> None:
    assert traces_until_found(name) <= MOST_TRACES, f"{name}: not found"
