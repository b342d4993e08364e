"""Where each request is, and whose blocks it has: the lists, the pools and every move between them.

Waiting, in the prefill pool, in the tier, in the decode pool, on the way between two of these,
parked (it runs, from the tier), or draining: it has ended or yielded, and what is in flight still
uses its blocks. Plans nothing and writes no rows; whoever moves a request through here cannot lose
a block.
"""

from __future__ import annotations

from collections import deque
from collections.abc import MutableSequence

from seesaw.scheduler.blocks import ROOT, BlockPool
from seesaw.scheduler.config import SchedulerConfig
from seesaw.scheduler.kv_tier import TierBlocks
from seesaw.scheduler.mix import Mix
from seesaw.scheduler.output import Load, Phase, Relay, Store
from seesaw.scheduler.request import Request, RequestStatus


class Residency:
    def __init__(self, config: SchedulerConfig) -> None:
        tier = config.tier
        self.config = config
        self.tier = TierBlocks(tier.tier_blocks, tier.tier_block_size) if tier else None
        # Prompts are shared where they are computed: loaded blocks belong to one request.
        caching = config.enable_prefix_caching
        size = config.block_size
        self.pools: dict[Phase, BlockPool] = {
            "decode": BlockPool(config.num_blocks, size, enable_caching=caching and tier is None)
        }
        if tier is not None:
            self.pools["prefill"] = BlockPool(tier.prefill_blocks, size, enable_caching=caching)
        if config.debug:
            for pool in self.pools.values():
                pool.poisonable = []
        self.requests: dict[str, Request] = {}
        self.waiting: deque[Request] = deque()
        self.prefilling: list[Request] = []
        self.storing: list[Request] = []
        self.stored: list[Request] = []
        self.loading: list[Request] = []
        self.relaying: list[Request] = []
        self.running: list[Request] = []
        self.parked: list[Request] = []
        self.draining: list[Request] = []
        self._lists: dict[RequestStatus, MutableSequence[Request]] = {
            RequestStatus.WAITING: self.waiting,
            RequestStatus.PREFILLING: self.prefilling,
            RequestStatus.STORING: self.storing,
            RequestStatus.STORED: self.stored,
            RequestStatus.LOADING: self.loading,
            RequestStatus.RELAYING: self.relaying,
            RequestStatus.RUNNING: self.running,
            RequestStatus.PARKED: self.parked,
            RequestStatus.DRAINING: self.draining,
        }
        self.oldest_steps = [0] * config.num_lanes
        """Of those in flight in each lane, or the next one: every step of the lane before it is
        done."""
        self.forget: list[str] = []  # workers are told with the next step
        self.preempted: list[str] = []
        self.num_stored_ever = 0
        self.reserved_blocks = 0
        """Of the decode pool, that the last load or admission there had to leave free."""
        self.largest_blocks = 0
        """Of the decode pool, that the largest request so far may need."""
        self.num_preemptions = 0
        self.num_redecisions = 0
        self.num_saved_tokens = 0
        """Positions between two layers, of which workers keep hidden states."""
        self.mix = Mix()
        self._transfers: dict[int, Request] = {}
        self._next_transfer = 0

    @property
    def num_transfers(self) -> int:
        return len(self._transfers)

    @property
    def num_seats(self) -> int:
        """Requests that run in the decode phase, or will without being admitted or loaded."""
        pledged = sum(1 for request in self.prefilling if request.relay_blocks)
        return pledged + sum(map(len, (self.relaying, self.loading, self.running, self.parked)))

    def add(self, request: Request) -> None:
        assert request.request_id not in self.requests, f"{request} is known already"
        self.requests[request.request_id] = request
        self.waiting.append(request)
        need = self.pools["decode"].blocks_for(request.limit - 1)
        self.largest_blocks = max(self.largest_blocks, need)

    def move(self, request: Request, status: RequestStatus, *, first: bool = False) -> None:
        """To another list: last in line there, or first."""
        self._lists[request.status].remove(request)
        self._lists[status].insert(0 if first else len(self._lists[status]), request)
        request.status = status

    # -- copies ---------------------------------------------------------------------------------

    def store(self, request: Request, phase: Phase) -> Store:
        """Begin to copy what is computed to the request's tier blocks."""
        transfer_id = self._begin_transfer(request)
        self.move(request, RequestStatus.STORING)
        request.num_in_tier = request.num_computed
        return Store(
            transfer_id,
            request.request_id,
            phase,
            list(request.blocks),
            list(request.tier_blocks),
            request.num_computed,
        )

    def load(
        self, request: Request, blocks: list[int], status: RequestStatus = RequestStatus.LOADING
    ) -> Load:
        """Begin to copy the request's tier blocks to `blocks`, which it holds from now on."""
        after = self.pools["decode"].readers(blocks) | request.transfers
        self._take_table(request, blocks)
        transfer_id = self._begin_transfer(request)
        self.move(request, status)
        return Load(
            transfer_id,
            request.request_id,
            list(request.tier_blocks),
            list(blocks),
            request.num_computed,
            tuple(sorted(after)),
        )

    def relay(self, request: Request) -> Relay:
        """Begin to copy what is computed to the request's blocks of the decode pool."""
        transfer_id = self._begin_transfer(request)
        self.move(request, RequestStatus.RELAYING)
        return Relay(
            transfer_id,
            request.request_id,
            list(request.blocks),
            list(request.relay_blocks),
            request.num_computed,
        )

    def park(self, request: Request) -> Store:
        """Begin to copy what the tier does not hold yet, after the rows of the step. The blocks are
        free for what comes behind that on each rank; the tier blocks stay the request's."""
        pool, tier = self.pools["decode"], self.tier
        assert tier is not None, "parked where there is no tier"
        assert request.pool is pool, f"{request} has no blocks to give"
        wide, size = tier.block_size, pool.block_size
        start = request.num_in_tier // wide * wide
        transfer_id = self._begin_transfer(request)
        store = Store(
            transfer_id,
            request.request_id,
            "decode",
            request.blocks[start // size : pool.blocks_for(request.num_computed)],
            request.tier_blocks[start // wide :],
            request.num_computed - start,
            start,
        )
        request.num_in_tier = request.num_computed
        pool.release_read(request.blocks, transfer_id)
        self._forget_table(request)
        self.move(request, RequestStatus.PARKED)
        return store

    def _begin_transfer(self, request: Request) -> int:
        transfer_id = self._next_transfer
        self._next_transfer += 1
        self._transfers[transfer_id] = request
        request.transfers.add(transfer_id)
        return transfer_id

    def transferred(self, transfer_id: int) -> None:
        """All ranks have copied. Raises KeyError for a transfer that is not in flight."""
        request = self._transfers.pop(transfer_id)
        request.transfers.remove(transfer_id)
        self.pools["decode"].was_read(transfer_id)
        if request.status is RequestStatus.STORING:
            has_yielded = request.pool is self.pools["decode"]
            self._release_blocks(request)
            self.move(request, RequestStatus.STORED, first=has_yielded)
            self.num_stored_ever += 1
        elif request.status is RequestStatus.LOADING:
            self._release_tier(request)
            self.move(request, RequestStatus.RUNNING)
        elif request.status is RequestStatus.RELAYING:
            blocks, request.relay_blocks = request.relay_blocks, []
            self._release_blocks(request)
            self._take_table(request, blocks)
            self.move(request, RequestStatus.RUNNING)
        elif request.status is RequestStatus.DRAINING:
            self.release_drained()

    def _take_table(self, request: Request, blocks: list[int]) -> None:
        """`blocks` of the decode pool."""
        request.pool = self.pools["decode"]
        request.blocks = blocks
        request.table_room = len(blocks) * self.config.block_size

    # -- ends -----------------------------------------------------------------------------------

    def end(self, request: Request) -> None:
        """It has ended; its blocks are free when nothing in flight uses them."""
        if request.status is not RequestStatus.DRAINING:
            self.move(request, RequestStatus.DRAINING)

    def preempt(self, request: Request) -> None:
        """It yields: it waits first in line, to be computed again, when its blocks are free."""
        request.num_preemptions += 1
        self.num_preemptions += 1
        self.move(request, RequestStatus.DRAINING)
        self.release_drained()

    def is_in_flight(self, request: Request) -> bool:
        """Whether a step in flight has a row of it: all of these are in its lane, as it goes to
        another one only when there are none."""
        return request.last_step >= self.oldest_steps[request.lane]

    def release_drained(self) -> None:
        """Take back the blocks of ended and preempted requests that nothing in flight uses."""
        for request in list(self.draining):
            if not self.is_in_flight(request) and not request.transfers:
                self._take_back(request)

    def _take_back(self, request: Request) -> None:
        self._release_blocks(request)
        self.pools["decode"].release(request.relay_blocks)
        request.relay_blocks = []
        self._release_tier(request)
        self.drop_saved(request)
        request.num_computed = 0
        if request.finish_reason is None:
            assert request.num_tokens == len(request.tokens), (
                f"{request} drained with pending tokens"
            )
            self.move(request, RequestStatus.WAITING, first=True)
            self.preempted.append(request.request_id)
            return
        self.draining.remove(request)
        request.status = RequestStatus.FINISHED
        del self.requests[request.request_id]
        if request.request_id in self.preempted:
            # It yielded and was aborted between two steps: workers hear that it ended, no more.
            self.preempted.remove(request.request_id)
        if request.was_sent:
            self.forget.append(request.request_id)

    def save(self, request: Request, num_tokens: int, layer: int) -> None:
        """Its next positions are before `layer`, and stay there until they run on."""
        self.drop_saved(request)
        self.num_saved_tokens += num_tokens
        request.layer_cursor, request.wave_tokens = layer, num_tokens

    def drop_saved(self, request: Request) -> None:
        """No position of it is between two layers any more."""
        self.num_saved_tokens -= request.wave_tokens
        request.layer_cursor = request.wave_tokens = 0

    def _release_blocks(self, request: Request) -> None:
        if request.pool is not None:
            register_full_blocks(request.pool, request)
            request.pool.release(request.blocks)
        self._forget_table(request)

    def _forget_table(self, request: Request) -> None:
        request.pool = None
        request.blocks = []
        request.table_room = request.num_registered = 0
        request.content = ROOT

    def _release_tier(self, request: Request) -> None:
        if self.tier is not None:
            self.tier.release(request.tier_blocks)
        request.tier_blocks = []
        request.num_in_tier = 0

    # -- debug ----------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise AssertionError unless blocks, lists and counters agree."""
        requests = self.requests.values()
        for phase, pool in self.pools.items():
            tables = [request.blocks for request in requests if request.pool is pool]
            if phase == "decode":
                tables += [request.relay_blocks for request in requests]
            pool.check(tables)
        if self.tier is not None:
            self.tier.check(request.tier_blocks for request in requests)
        for request in requests:
            has_pool = request.pool is not None
            assert has_pool or not request.blocks, f"{request} has blocks of no pool"
            assert request.table_room == len(request.blocks) * self.config.block_size, request
            done = request.num_computed + request.wave_tokens
            assert done <= request.table_room or not has_pool, request
            assert (request.layer_cursor > 0) == (request.wave_tokens > 0), request
        saved = sum(request.wave_tokens for request in requests)
        assert saved == self.num_saved_tokens, f"{saved} positions are saved, not as counted"
        listed = {id(request): status for status, one in self._lists.items() for request in one}
        assert sum(map(len, self._lists.values())) == len(listed), "a request is in two lists"
        assert listed == {id(request): request.status for request in requests}, (
            "a request is in the wrong list, or in none"
        )
        moving = {one: request for request in requests for one in request.transfers}
        assert moving == self._transfers, "a transfer in flight belongs to nobody"


def register_full_blocks(pool: BlockPool, request: Request) -> None:
    """Make a request's full blocks of known tokens findable by others.

    Allowed as soon as the step that computes them is planned: steps run in order, and in a layer
    all KV of a step is written before any is read. Other lanes must wait (`written_in`).
    """
    if not pool.enable_caching:
        return
    size = pool.block_size
    full = min(request.num_computed, len(request.tokens)) // size
    for index in range(request.num_registered, full):
        request.content = pool.register(
            request.blocks[index],
            request.content,
            request.tokens[index * size : (index + 1) * size],
        )
    request.num_registered = max(request.num_registered, full)
