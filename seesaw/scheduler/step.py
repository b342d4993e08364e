"""The step that is being planned: what a policy may do, with the budgets kept for it.

A policy decides who runs, who moves and who yields; `StepBuilder` knows how: it takes blocks,
counts tokens and writes rows, stores and loads. Nothing a policy does through it can break the
block accounting or exceed a budget.
"""

from __future__ import annotations

from collections.abc import Sequence

from seesaw.scheduler.output import Batch, NewRequest, Phase, Row, SchedulerOutput
from seesaw.scheduler.request import ALL, Request, RequestStatus
from seesaw.scheduler.residency import Residency, register_full_blocks
from seesaw.scheduler.view import StepView

_make_row = tuple.__new__  # Row(...) costs twice as much, and there are hundreds of rows in a step


class StepBuilder(StepView):
    """What a policy may do. The lists it may reorder, not resize.

    A row may run some of the layers; the next one of its request goes on there (at
    `request.layer_cursor`) with the same tokens, or has none where these exceed the budget. They
    count as computed with the last layer. Workers keep the hidden states of all positions that are
    between layers, as many as a step may have tokens (`num_saved_tokens`): what is more is not
    begun. With a host tier every row runs all layers.
    """

    def __init__(
        self,
        residency: Residency,
        output: SchedulerOutput,
        num_decoding_in_flight: int = 0,
        steps_in_flight: Sequence[int] = (0,),
    ) -> None:
        super().__init__(residency, output.phase)
        self.lane = output.lane
        """Which of `config.num_lanes` streams runs the step, beside those of the others."""
        self.steps_in_flight = steps_in_flight
        """By lane."""
        self.tokens_left = self.budget = self.config.max_num_batched_tokens
        """Tokens that still fit this step, and that may be in it."""
        self.drawing: list[Request] = []
        """Requests whose row samples, in row order."""
        self.num_shared_tokens = 0
        """Prompt tokens that requests admitted for the first time need not compute."""
        self.num_stopped_tokens = 0
        """Tokens of rows that stop between two layers."""
        self.num_decoding_in_flight = num_decoding_in_flight
        """Steps of this phase in flight that have such rows."""
        self.num_parked = 0
        self._output = output
        self._batch = Batch([])
        self._add_row = self._batch.rows.append
        output.batches.append(self._batch)
        self.step_id = output.step_id
        self._num_layers = self.config.num_layers
        self._num_prompt_rows = 0
        self._prefilled: list[Request] = []
        self._parking: list[Request] = []
        self._fetched: list[Request] = []
        self._early: list[Request] = []  # share what a step in flight of this lane writes
        self.written: list[int] = []
        """Blocks that others may share only in this lane until the step is done."""

    @property
    def rows(self) -> Sequence[Row]:
        """Those planned so far."""
        return self._batch.rows

    def take_share(self, share: float) -> None:
        """Run the step, and those of its lane behind it, on this share of the device's compute
        units: one or more of `config.share_units` equal parts."""
        parts = share * self.config.share_units
        assert 1 <= round(parts, 6) <= self.config.share_units, f"no share of a device: {share}"
        self._batch.compute_share = share

    @property
    def num_fetched(self) -> int:
        return len(self._fetched)

    @property
    def num_decode_rows(self) -> int:
        """Rows of this step that continue an answer: not those of what is computed again."""
        return len(self._batch.rows) - self._num_prompt_rows

    # -- rows -----------------------------------------------------------------------------------

    def limit_tokens(self, num_tokens: int) -> None:
        """Lower the budget of this step. Before any row."""
        assert not self._batch.rows, "the step has rows already"
        assert num_tokens > 0, "a step without any token"
        self.tokens_left = self.budget = min(self.budget, num_tokens)

    def schedule(
        self, request: Request, max_tokens: int, layers: tuple[int, int] | None = None
    ) -> bool:
        """Add a row of up to `max_tokens` of a request's tokens, within the budget, through
        `layers` (start, stop) or all that are left. It must have blocks of this phase's pool.

        False means that no block is free for it: someone may be made to yield, or it waits. True is
        also returned where there is nothing to run: all its tokens are being drawn, or the last one
        is, unknown to the first of several stages, or the other lane has a row of it in flight. In
        the prefill phase a prompt's last row has it stored to the tier, or relayed if admitted so.
        """
        assert request.last_step != self.step_id, f"{request} has a row in this step already"
        assert request.status is self._runs, f"{request} does not run in phase {self.phase}"
        assert request not in self._parking, f"{request} has given its blocks away in this step"
        start, num_tokens = request.num_computed, request.num_tokens
        count = num_tokens - start
        if num_tokens >= request.limit or count <= 0:
            return True
        if request.lane != self.lane and self._residency.is_in_flight(request):
            return True
        first, stop = 0, self._num_layers
        if layers is not None or request.layer_cursor:
            first, stop, max_tokens = self._part(request, layers, max_tokens)
        if count > max_tokens:
            count = max_tokens
        if count > self.tokens_left:
            count = self.tokens_left
        if count <= 0:
            return True
        end = start + count
        must_tell = end > request.num_known
        if must_tell and end > len(request.tokens):
            return True
        if request.transfers and request in self._fetched:
            return True
        if end > request.table_room and not self._extend(request, end):
            return False
        if request.transfers:
            self._await(request.transfers)
        if must_tell:
            self._tell(request)
        samples = end == num_tokens and stop == self._num_layers
        self._add_row(_make_row(Row, (request.request_id, start, count, first, stop, samples)))
        self.tokens_left -= count
        request.last_step, request.lane = self.step_id, self.lane
        # Not `Row.decodes`, whose call costs as much as the row.
        if start < request.num_prompt or count > 1 or first or not samples:
            self._num_prompt_rows += 1
        if stop < self._num_layers:
            self._residency.save(request, count, stop)
            self.num_stopped_tokens += count
            return True
        if first:
            self._residency.drop_saved(request)
        request.num_computed = end
        if samples:
            request.num_tokens = end + 1
            self.drawing.append(request)
            if not self._is_plain:
                self._note_draw(request, end)
        if start < request.num_prompt:
            self._register(request)
        return True

    def _part(
        self, request: Request, layers: tuple[int, int] | None, max_tokens: int
    ) -> tuple[int, int, int]:
        """First layer, last one + 1, and most tokens of a row that may not run all layers; no token
        where those that it goes on with exceed the budget."""
        cursor, num_layers = request.layer_cursor, self._num_layers
        first, stop = layers or (cursor, num_layers)
        assert self._tier is None, "rows stay between layers only where there is no host tier"
        assert first == cursor, f"{request} goes on at layer {cursor}, not {first}"
        assert first < stop <= num_layers, f"{layers}: no layers of the {num_layers}"
        if cursor:
            return first, stop, request.wave_tokens * (request.wave_tokens <= self.tokens_left)
        if stop < num_layers:
            room = self.config.max_num_batched_tokens - self._residency.num_saved_tokens
            max_tokens = min(max_tokens, room)
        return first, stop, max_tokens

    def _register(self, request: Request) -> None:
        first = request.num_registered
        register_full_blocks(self._pool, request)
        if self.config.num_lanes > 1:
            written = request.blocks[first : request.num_registered]
            self._pool.written_in.update(dict.fromkeys(written, self.lane))
            self.written += written

    def _note_draw(self, request: Request, end: int) -> None:
        """What a sampled row means beyond its token, but in the plainest of layouts."""
        if self.stages > 1:
            request.num_known = end
        if self.phase == "prefill" and end + 1 < request.limit:
            self._prefilled.append(request)

    def _tell(self, request: Request) -> None:
        known, request.num_known = request.num_known, ALL
        self._output.known_tokens[request.request_id] = (known, request.tokens[known:])

    def _await(self, transfers: set[int]) -> None:
        """On each rank, before the rows of this step."""
        self._output.awaits += sorted(transfers.difference(self._output.awaits))

    def _extend(self, request: Request, end: int) -> bool:
        count = -(-(end - request.table_room) // self._pool.block_size)
        if count > self._pool.num_free:
            return False
        blocks = self._pool.allocate(count)
        self._await(self._pool.readers(blocks))
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
        shared, content = self._pool.match(request.tokens, request.num_tokens - 1, self.lane)
        total = self._pool.blocks_for(request.num_tokens)
        fresh = total - len(shared)
        if fresh + self._pool.num_free_among(shared) + reserve_blocks > self._pool.num_free:
            return False
        self._pool.share(shared)
        if self._pool.written_in and not self._pool.written_in.keys().isdisjoint(shared):
            self._early.append(request)
        request.pool = self._pool
        request.blocks = shared + self._pool.allocate(fresh)
        self._await(self._pool.readers(request.blocks))
        request.table_room = total * self._pool.block_size
        request.content, request.num_registered = content, len(shared)
        request.num_computed = len(shared) * self._pool.block_size
        if num_tier_blocks and self._tier is not None:
            request.tier_blocks = self._tier.allocate(num_tier_blocks)
        if relay:
            request.relay_blocks = self._take_decode_blocks(request.num_tokens)
            self._await(self._residency.pools["decode"].readers(request.relay_blocks))
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

        False where the tier has no room, or there is nothing to come back for, or the tier has a
        copy already: such a request can be parked. Must not have been admitted or given a row in
        this step.
        """
        self._check_may_yield(request)
        tier = self._tier
        if tier is None or request.num_computed == 0 or request.num_tokens >= request.limit:
            return False
        if request.tier_blocks:
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
        if self.num_seats >= self.config.max_num_seqs:
            return False
        return self._load(request, reserve_blocks, RequestStatus.LOADING)

    def _load(self, request: Request, reserve_blocks: int, status: RequestStatus) -> bool:
        pool = self._residency.pools["decode"]
        self._residency.reserved_blocks = reserve_blocks
        if pool.blocks_for(request.num_computed) + reserve_blocks > pool.num_free:
            return False
        blocks = self._take_decode_blocks(request.num_computed)
        self._output.loads.append(self._residency.load(request, blocks, status))
        return True

    def join(self, request: Request) -> bool:
        """Let a stored request run from the tier: it is parked. False where enough run."""
        assert request.status is RequestStatus.STORED, f"{request} is not in the tier"
        if self.num_seats >= self.config.max_num_seqs:
            return False
        self._residency.move(request, RequestStatus.PARKED)
        return True

    def fetch(self, request: Request, *, reserve_blocks: int = 0) -> bool:
        """Begin to load a parked request, if `reserve_blocks` stay free. It may have a row in any
        later step: ranks wait for their own part of the load, the scheduler for nothing."""
        assert request.status is RequestStatus.PARKED, f"{request} is not parked"
        if not self._load(request, reserve_blocks, RequestStatus.RUNNING):
            return False
        self._fetched.append(request)
        return True

    def park(self, request: Request) -> bool:
        """Give the blocks of a running request to others from the next step on, after its row in
        this step if it has one. What the tier does not hold yet is stored there.

        False where the tier has no room, the request has not run since it was fetched, or its last
        token is being drawn.
        """
        assert request.status is RequestStatus.RUNNING, f"{request} does not run"
        tier, done = self._tier, request.num_computed
        if tier is None or request.num_tokens >= request.limit or done <= request.num_in_tier:
            return False
        count = tier.blocks_for(done) - len(request.tier_blocks)
        if count > tier.num_free or request in self._parking:
            return False
        request.tier_blocks += tier.allocate(count)
        self._parking.append(request)
        return True

    def _take_decode_blocks(self, num_tokens: int) -> list[int]:
        """For copies to fill, in any phase."""
        pool = self._residency.pools["decode"]
        return pool.allocate_for_copy(pool.blocks_for(num_tokens))

    def note_redecision(self) -> None:
        """Count that a policy has changed the way it goes."""
        self._residency.num_redecisions += 1

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

    def announce(self, phase: Phase) -> None:
        """A change to `phase` is expected within a few steps: ranks may get ready for it."""
        assert phase != self.phase, f"{phase} has begun"
        self._output.announce = phase

    def close(self) -> None:
        """All is planned: those whose prompt runs to its end in this step are stored or relayed
        after it. Who shares what is still being written stays in this lane until it is."""
        for request in self._early:
            request.lane, request.last_step = self.lane, self.step_id
        for request in self._prefilled:
            if request.relay_blocks:
                self._output.relays.append(self._residency.relay(request))
            else:
                self._output.stores.append(self._residency.store(request, "prefill"))
        for request in self._parking:
            if request.status is RequestStatus.RUNNING:  # it may have been made to yield since
                if request.transfers:
                    self._await(request.transfers)
                self._output.stores.append(self._residency.park(request))
                self.num_parked += 1
