"""The step that is being planned: what a policy may do, with the budgets kept for it.

A policy decides who runs, who moves and who yields; `StepBuilder` knows how: it takes blocks,
counts tokens and writes rows, stores and loads. Nothing a policy does through it can break the
block accounting or exceed a budget.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from seesaw.scheduler.config import SchedulerConfig
from seesaw.scheduler.output import Batch, ModelOutput, NewRequest, Phase, Row, SchedulerOutput
from seesaw.scheduler.request import ALL, Request, RequestStatus
from seesaw.scheduler.residency import Residency, register_full_blocks


class Policy(Protocol):
    """A scheduling policy: one small class, made from its frozen `Options` dataclass.

    `uses_tier = True` on the class says that it keeps KV in the host tier between phases; without
    it there is one layout and one phase. It may also have `observe(step: SchedulerOutput, done:
    ModelOutput)`, which is told of each finished step, for those that decide by measured times.
    """

    Options: type[Any]

    def __init__(self, options: Any) -> None: ...

    def plan(self, step: StepBuilder) -> None:
        """Fill one step. Called when the engine can issue another one; may leave it empty."""
        ...


@runtime_checkable
class Observer(Protocol):
    """A policy that wants to hear of finished steps."""

    def observe(self, step: SchedulerOutput, done: ModelOutput) -> None: ...


_make_row = tuple.__new__  # Row(...) costs twice as much, and there are hundreds of rows in a step


class StepBuilder:
    """A policy may read the lists of requests and reorder them, not resize them.

    `waiting` (next first). With a host tier: `prefilling` have blocks of the prefill pool,
    `storing` are on their way to the tier, `stored` are in it (next to be loaded first), `loading`
    are on their way to the decode pool, `relaying` are so straight from the prefill pool. `running`
    (oldest first) have blocks of the decode pool.
    """

    def __init__(
        self,
        residency: Residency,
        output: SchedulerOutput,
        num_decoding_in_flight: int = 0,
    ) -> None:
        self.config: SchedulerConfig = residency.config
        self.waiting = residency.waiting
        self.prefilling = residency.prefilling
        self.storing = residency.storing
        self.stored = residency.stored
        self.loading = residency.loading
        self.relaying = residency.relaying
        self.running = residency.running
        self.tokens_left = self.budget = self.config.max_num_batched_tokens
        """Tokens that still fit this step, and that may be in it."""
        self.drawing: list[Request] = []
        """Requests whose row samples, in row order."""
        self.num_shared_tokens = 0
        """Prompt tokens that requests admitted for the first time need not compute."""
        self.num_decoding_in_flight = num_decoding_in_flight
        """Steps of this phase in flight that have such rows."""
        self._residency = residency
        self._tier = residency.tier
        self._output = output
        self._batch = Batch([])
        self._add_row = self._batch.rows.append
        output.lanes.append(self._batch)
        self.step_id = output.step_id
        self._num_layers = self.config.num_layers
        self._num_prompt_rows = 0
        self._prefilled: list[Request] = []
        self._enter(output.phase)

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self.stages = self.config.stages(phase)
        self._pool = self._residency.pools[phase]
        self._runs = RequestStatus.PREFILLING if phase == "prefill" else RequestStatus.RUNNING
        self._is_plain = phase == "decode" and self.stages == 1

    @property
    def num_decode_rows(self) -> int:
        """Rows of this step that continue an answer."""
        return len(self._batch.rows) - self._num_prompt_rows

    # -- what there is --------------------------------------------------------------------------

    @property
    def num_free_blocks(self) -> int:
        """Of the pool of this phase."""
        return self._pool.num_free

    @property
    def blocks_draining(self) -> int:
        """Blocks of this phase's pool that come back by themselves: steps in flight use them or
        draw the last token of who has them, or they are being stored or relayed."""
        ending = (request for request in self.running if request.num_tokens >= request.limit)
        return sum(
            len(request.blocks)
            for requests in (self._residency.draining, self.storing, self.relaying, ending)
            for request in requests
            if request.pool is self._pool
        )

    @property
    def num_free_tier_blocks(self) -> int:
        return 0 if self._tier is None else self._tier.num_free

    @property
    def num_tier_blocks_to_load(self) -> int:
        """Tier blocks of requests that are stored, or on their way in or out: all but those kept
        for prompts under way, and those of requests that have ended."""
        if self._tier is None:
            return 0
        others = (*self.prefilling, *self._residency.draining)
        return self._tier.num_used - sum(len(request.tier_blocks) for request in others)

    @property
    def num_seats(self) -> int:
        """Requests that run in the decode phase, or will without being admitted or loaded: those
        on their way to the decode pool and those to be relayed."""
        return self._residency.num_seats

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

    # -- rows -----------------------------------------------------------------------------------

    def limit_tokens(self, num_tokens: int) -> None:
        """Lower the budget of this step. Before any row."""
        assert not self._batch.rows, "the step has rows already"
        assert num_tokens > 0, "a step without any token"
        self.tokens_left = self.budget = min(self.budget, num_tokens)

    def schedule(self, request: Request, max_tokens: int) -> bool:
        """Add a row of up to `max_tokens` of a request's tokens, within the budget. The request
        must have blocks of this phase's pool.

        False means that no block is free for it: the caller may make someone yield, or leave it for
        a later step. True is also returned where there is nothing to run: all of its tokens are
        already being drawn, or the last one is, in a layout of several stages, and so is not known
        to the first stage. A request has at most one row in a step. In the prefill phase a prompt's
        last row has it stored to the tier, or relayed where it was admitted so.
        """
        assert request.last_step != self.step_id, f"{request} has a row in this step already"
        assert request.status is self._runs, f"{request} does not run in phase {self.phase}"
        start, num_tokens = request.num_computed, request.num_tokens
        count = num_tokens - start
        if num_tokens >= request.limit or count <= 0:
            return True
        tokens_left = self.tokens_left
        if count > max_tokens:
            count = max_tokens
        if count > tokens_left:
            count = tokens_left
        if count <= 0:
            return True
        end = start + count
        must_tell = end > request.num_known
        if must_tell and end > len(request.tokens):
            return True
        if end > request.table_room and not self._extend(request, end):
            return False
        if must_tell:
            self._tell(request)
        samples = end == num_tokens
        self._add_row(
            _make_row(Row, (request.request_id, start, count, 0, self._num_layers, samples))
        )
        self.tokens_left = tokens_left - count
        request.num_computed = end
        request.last_step = self.step_id
        if samples:
            request.num_tokens = end + 1
            self.drawing.append(request)
            if not self._is_plain:
                self._note_draw(request, end)
        if start < request.num_prompt:
            self._num_prompt_rows += 1
            register_full_blocks(self._pool, request)
        return True

    def _note_draw(self, request: Request, end: int) -> None:
        """What a sampled row means beyond its token, but in the plainest of layouts."""
        if self.stages > 1:
            request.num_known = end
        if self.phase == "prefill" and end + 1 < request.limit:
            self._prefilled.append(request)

    def _tell(self, request: Request) -> None:
        known, request.num_known = request.num_known, ALL
        self._output.known_tokens[request.request_id] = (known, request.tokens[known:])

    def _extend(self, request: Request, end: int) -> bool:
        count = -(-(end - request.table_room) // self._pool.block_size)
        if count > self._pool.num_free:
            return False
        blocks = self._pool.allocate(count)
        request.blocks += blocks
        request.table_room += count * self._pool.block_size
        self._output.appended_blocks.setdefault(request.request_id, []).extend(blocks)
        return True

    # -- in and out -----------------------------------------------------------------------------

    def admit(self, request: Request, *, reserve_blocks: int = 0, relay: bool = False) -> bool:
        """Move a waiting request to `running`, or in the prefill phase to `prefilling`, with blocks
        for all of its tokens, if `reserve_blocks` stay free. In the prefill phase it also takes the
        tier blocks that it will be stored to; with `relay`, which `can_relay` allowed just now,
        blocks of the decode pool instead.

        The beginning that other requests have computed is shared. Runs nothing yet: `schedule`
        does.
        """
        assert request.status is RequestStatus.WAITING, f"{request} does not wait"
        prefills = self.phase == "prefill"
        assert prefills or not relay, "relays are for prompts of the prefill phase"
        active = len(self.prefilling) if prefills else self._residency.num_seats
        num_tier_blocks = self.tier_blocks_for(request) if prefills and not relay else 0
        if active >= self.config.max_num_seqs or num_tier_blocks > self.num_free_tier_blocks:
            return False
        # At least one token is run, so that there are logits to draw from.
        shared, content = self._pool.match(request.tokens, request.num_tokens - 1)
        total = self._pool.blocks_for(request.num_tokens)
        fresh = total - len(shared)
        if fresh + self._pool.num_free_among(shared) + reserve_blocks > self._pool.num_free:
            return False
        self._pool.share(shared)
        request.pool = self._pool
        request.blocks = shared + self._pool.allocate(fresh)
        request.table_room = total * self._pool.block_size
        request.content, request.num_registered = content, len(shared)
        request.num_computed = len(shared) * self._pool.block_size
        if num_tier_blocks and self._tier is not None:
            request.tier_blocks = self._tier.allocate(num_tier_blocks)
        if relay:
            request.relay_blocks = self._take_decode_blocks(request.num_tokens)
        if request.num_preemptions == 0:
            # What a request finds again of its own after it yielded is not a saving.
            request.num_cached_tokens = request.num_computed
            self.num_shared_tokens += request.num_computed
        self._residency.move(request, self._runs)
        self._output.appended_blocks[request.request_id] = list(request.blocks)
        if not request.was_sent:
            request.was_sent = True
            self._output.new_requests.append(
                NewRequest(
                    request.request_id,
                    list(request.tokens),
                    request.sampling,
                    request.seed,
                    request.eos_token_ids,
                )
            )
        return True

    def preempt(self, request: Request) -> None:
        """Make a running request yield: it waits first in line and its KV is computed again.

        Its blocks are free at once, or when the steps in flight that use them are done
        (`blocks_draining`). Must not have been admitted or given a row in this step.
        """
        self._check_may_yield(request)
        self._residency.preempt(request)

    def store_back(self, request: Request) -> bool:
        """Make a running request yield to the tier: it keeps its KV and is first in line for a
        load. Its blocks are free once they are copied (`blocks_draining`).

        False where the tier has no room, or there is nothing to come back for. Must not have been
        admitted or given a row in this step.
        """
        self._check_may_yield(request)
        tier = self._tier
        if tier is None or request.num_computed == 0 or request.num_tokens >= request.limit:
            return False
        count = tier.blocks_for(request.num_computed)
        if count > tier.num_free:
            return False
        request.tier_blocks = tier.allocate(count)
        self._output.stores.append(self._residency.store(request, "decode"))
        return True

    def _check_may_yield(self, request: Request) -> None:
        assert request.status is RequestStatus.RUNNING, f"{request} does not run"
        assert request.last_step != self.step_id, f"{request} has a row in the step being planned"
        assert request.request_id not in self._output.appended_blocks, (
            f"{request} was admitted in the step being planned"
        )

    # -- tier and phases ------------------------------------------------------------------------

    def load(self, request: Request, *, reserve_blocks: int = 0) -> bool:
        """Begin to load a stored request into the decode pool, in any phase, if `reserve_blocks`
        stay free there. It joins `running` when all ranks are done."""
        assert request.status is RequestStatus.STORED, f"{request} is not in the tier"
        pool = self._residency.pools["decode"]
        self._residency.reserved_blocks = reserve_blocks
        if (
            pool.blocks_for(request.num_computed) + reserve_blocks > pool.num_free
            or self._residency.num_seats >= self.config.max_num_seqs
        ):
            return False
        blocks = self._take_decode_blocks(request.num_computed)
        self._output.loads.append(self._residency.load(request, blocks))
        return True

    def _take_decode_blocks(self, num_tokens: int) -> list[int]:
        """For copies to fill, in any phase."""
        pool = self._residency.pools["decode"]
        blocks = pool.allocate(pool.blocks_for(num_tokens))
        if pool.poisonable:
            # They would be poisoned in the next step of their phase, perhaps after the copy.
            taken = set(blocks)
            pool.poisonable = [block for block in pool.poisonable if block not in taken]
        return blocks

    def switch(self) -> None:
        """Go over to the other phase with this step. Before any row; nothing is waited for: the
        workers run what is in flight first."""
        assert self._tier is not None, "there are phases only where there is a host tier"
        assert not self._batch.rows, "the step has rows of the phase before"
        assert not self._output.reshard, "switched twice in a step"
        assert not self._output.appended_blocks, "the step has blocks of the phase before"
        self._output.reshard = True
        self._output.phase = "decode" if self.phase == "prefill" else "prefill"
        self.num_decoding_in_flight = 0
        self._enter(self._output.phase)

    def close(self) -> None:
        """All is planned: those whose prompt runs to its end in this step are stored or relayed
        after it."""
        for request in self._prefilled:
            if request.relay_blocks:
                self._output.relays.append(self._residency.relay(request))
            else:
                self._output.stores.append(self._residency.store(request, "prefill"))
