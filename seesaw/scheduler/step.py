"""The step that is being planned: what a policy may do, with the budgets kept for it.

A policy decides who runs and who yields; `StepBuilder` knows how: it takes blocks, counts tokens
and writes the rows. Nothing a policy does through it can break the block accounting or exceed a
budget.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from seesaw.scheduler.blocks import BlockPool
from seesaw.scheduler.output import Batch, NewRequest, Row, SchedulerOutput
from seesaw.scheduler.request import Request, RequestStatus

if TYPE_CHECKING:
    from seesaw.scheduler.scheduler import SchedulerConfig


class Policy(Protocol):
    """A scheduling policy: one small class, made from its frozen `Options` dataclass."""

    Options: type[Any]

    def __init__(self, options: Any) -> None: ...

    def plan(self, step: StepBuilder) -> None:
        """Fill one step. Called when the engine can issue another one; may leave it empty."""
        ...


_make_row = tuple.__new__  # Row(...) costs twice as much, and there are hundreds of rows in a step


class StepBuilder:
    """`running` (oldest first) and `waiting` (next first) may be read and reordered, not resized,
    by a policy."""

    def __init__(
        self,
        config: SchedulerConfig,
        pool: BlockPool,
        running: list[Request],
        waiting: deque[Request],
        output: SchedulerOutput,
        preempt: Callable[[Request], int],
    ) -> None:
        self.config = config
        self.running = running
        self.waiting = waiting
        self.tokens_left = config.max_num_batched_tokens
        """Tokens that still fit this step."""
        self.drawing: list[Request] = []
        """Requests whose row samples, in row order."""
        self.blocks_draining = 0
        """Blocks that come back by themselves once steps in flight are done."""
        self.num_shared_tokens = 0
        """Prompt tokens that requests admitted for the first time need not compute."""
        self._pool = pool
        self._preempt = preempt
        self._output = output
        self._batch = Batch([])
        output.lanes.append(self._batch)
        self._step_id = output.step_id
        self._num_layers = config.num_layers

    @property
    def num_free_blocks(self) -> int:
        return self._pool.num_free

    def schedule(self, request: Request, max_tokens: int) -> bool:
        """Add a row of up to `max_tokens` of a running request's tokens, within the budget.

        False means that no block is free for it: the caller may preempt someone, or leave it for a
        later step. True is also returned where there is nothing to run (all of its tokens are
        already being drawn). A request has at most one row in a step.
        """
        assert request.last_step != self._step_id, f"{request} has a row in this step already"
        start = request.num_computed
        count = request.num_tokens - start
        if request.num_tokens >= request.limit or count <= 0:
            return True
        if count > max_tokens:
            count = max_tokens
        if count > self.tokens_left:
            count = self.tokens_left
        if count <= 0:
            return True
        end = start + count
        if end > request.table_room and not self._extend(request, end):
            return False
        samples = end == request.num_tokens
        self._batch.rows.append(
            _make_row(Row, (request.request_id, start, count, 0, self._num_layers, samples))
        )
        self.tokens_left -= count
        request.num_computed = end
        request.last_step = self._step_id
        if samples:
            request.num_tokens = end + 1
            self.drawing.append(request)
        if start < request.num_prompt:
            register_full_blocks(self._pool, request)
        return True

    def admit(self, request: Request, *, reserve_blocks: int = 0) -> bool:
        """Move a waiting request to `running`, with blocks for all of its tokens, if
        `reserve_blocks` stay free.

        The beginning that other requests have computed is shared. Runs nothing yet: `schedule`
        does.
        """
        assert request.status is RequestStatus.WAITING, f"{request} does not wait"
        if len(self.running) >= self.config.max_num_seqs:
            return False
        # At least one token is run, so that there are logits to draw from.
        shared, content = self._pool.match(request.tokens, request.num_tokens - 1)
        total = -(-request.num_tokens // self._pool.block_size)
        fresh = total - len(shared)
        if fresh + self._pool.num_free_among(shared) + reserve_blocks > self._pool.num_free:
            return False
        self._pool.share(shared)
        request.blocks = shared + self._pool.allocate(fresh)
        request.table_room = total * self._pool.block_size
        request.content, request.num_registered = content, len(shared)
        request.num_computed = len(shared) * self._pool.block_size
        if request.num_preemptions == 0:
            # What a request finds again of its own after it yielded is not a saving.
            request.num_cached_tokens = request.num_computed
            self.num_shared_tokens += request.num_computed
        request.status = RequestStatus.RUNNING
        self.waiting.remove(request)
        self.running.append(request)
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
        assert request.status is RequestStatus.RUNNING, f"{request} does not run"
        assert request.last_step != self._step_id, f"{request} has a row in the step being planned"
        assert request.request_id not in self._output.appended_blocks, (
            f"{request} was admitted in the step being planned"
        )
        num_blocks = len(request.blocks)
        self.blocks_draining += num_blocks - self._preempt(request)

    def _extend(self, request: Request, end: int) -> bool:
        assert request.status is RequestStatus.RUNNING, f"{request} does not run"
        count = -(-(end - request.table_room) // self._pool.block_size)
        if count > self._pool.num_free:
            return False
        blocks = self._pool.allocate(count)
        request.blocks += blocks
        request.table_room += count * self._pool.block_size
        self._output.appended_blocks.setdefault(request.request_id, []).extend(blocks)
        return True


def register_full_blocks(pool: BlockPool, request: Request) -> None:
    """Make a request's full blocks of known tokens findable by others.

    Allowed as soon as the step that computes them is planned: steps run in order, and in a layer
    all KV of a step is written before any is read.
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
