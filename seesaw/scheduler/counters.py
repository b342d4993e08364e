"""What the steps of a scheduler ask of the model: the counts by which published schedules differ.

Looks on where it is attached (`Scheduler.counter`), in engine and simulator alike; changes nothing
and takes no times. Experts that rows touch are the routers' business, not known here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Self

from seesaw.scheduler.output import Row, SchedulerOutput
from seesaw.scheduler.request import Request
from seesaw.scheduler.residency import Residency


@dataclass(slots=True)
class StepCounts:
    """Counts over steps that have rows. A *decode* is a row of one token that continues an answer,
    every other row is of a *prompt* (or of what is computed again after its request yielded)."""

    num_steps: int = 0
    num_prompt_steps: int = 0
    """With rows of prompts alone; with decodes alone; with both."""
    num_decode_steps: int = 0
    num_hybrid_steps: int = 0
    num_tokens: int = 0
    """Each once, with the row that runs its first layer."""
    most_tokens: int = 0
    """Of one step, in whatever layers."""
    num_padded_rows: int = 0
    """By which steps fall short of whole tiles."""
    num_decode_rows: int = 0
    num_stalled_steps: int = 0
    """That left out a decode which could have had a row, and those decodes."""
    num_stalls: int = 0
    prompt_passes: int = 0
    """Layers that rows of prompts went through: how often a layer is run for them."""
    prompt_row_layers: int = 0
    """Tokens of prompts times the layers that they went through in a step."""
    prompt_key_layers: int = 0
    """Positions whose KV rows of prompts, or decodes, read; in each of their layers."""
    decode_key_layers: int = 0
    num_preempted: int = 0
    """Requests that yielded to be computed again, and tokens that were so."""
    num_recomputed_tokens: int = 0
    num_share_changes: int = 0
    """Times that a lane had another share of the compute units than in its step before."""

    @classmethod
    def total(cls, parts: Iterable[Self]) -> Self:
        """Over several schedulers."""
        total = cls()
        for part in parts:
            for field in fields(cls):
                own, other = getattr(total, field.name), getattr(part, field.name)
                joined = max(own, other) if field.name == "most_tokens" else own + other
                setattr(total, field.name, joined)
        return total


class StepCounter:
    """Counts from the step on from which it looks on. `tile`: rows in which matrix products are
    computed, for `num_padded_rows`."""

    def __init__(self, tile: int = 128) -> None:
        self.counts = StepCounts()
        self.tile = tile
        self._begun: dict[str, int] = {}
        """Positions that were computed once or began to be, also where their KV is lost by now."""
        self._shares: dict[int, float] = {}
        """That each lane had last."""

    def note(self, step: SchedulerOutput, at: Residency) -> None:
        """A step that was just planned, and where requests stand after it."""
        for request_id in step.finished:
            self._begun.pop(request_id, None)
        counts = self.counts
        counts.num_preempted += len(step.preempted)
        rows = step.rows
        if not rows:
            return
        decodes = [row for row in rows if self._count_row(row, at.requests[row.request_id])]
        num_decodes = len(decodes)
        num_tokens = step.num_tokens
        counts.num_steps += 1
        counts.num_prompt_steps += num_decodes == 0
        counts.num_decode_steps += num_decodes == len(rows)
        counts.num_hybrid_steps += 0 < num_decodes < len(rows)
        counts.num_decode_rows += num_decodes
        counts.most_tokens = max(counts.most_tokens, num_tokens)
        counts.num_padded_rows += -num_tokens % self.tile
        for batch in step.batches:
            before = self._shares.setdefault(step.lane, batch.compute_share)
            counts.num_share_changes += before != batch.compute_share
            self._shares[step.lane] = batch.compute_share
        if _may_stall(step, decodes, at):
            num_stalls = sum(_is_stalled(one, step, at) for one in at.running)
            counts.num_stalls += num_stalls
            counts.num_stalled_steps += num_stalls > 0

    def _count_row(self, row: Row, request: Request) -> bool:
        """True for a decode."""
        counts, request_id = self.counts, row.request_id
        start, end = row.token_start, row.token_start + row.num_tokens
        num_layers = row.layer_stop - row.layer_start
        if row.layer_start == 0:
            begun = self._begun.get(request_id, 0)
            counts.num_tokens += row.num_tokens
            counts.num_recomputed_tokens += max(0, min(end, begun) - start)
            self._begun[request_id] = max(end, begun)
        if row.decodes(request.num_prompt):
            counts.decode_key_layers += end * num_layers
            return True
        counts.prompt_passes += num_layers
        counts.prompt_row_layers += row.num_tokens * num_layers
        counts.prompt_key_layers += end * num_layers
        return False


def _may_stall(step: SchedulerOutput, decodes: list[Row], at: Residency) -> bool:
    """Whether decodes that it leaves out wait for it. Of several stages each has a share of them:
    those left out have another turn. And prompts of one lane hold up nobody in the other, nor does
    what is taken in again there and lacks its last token alone."""
    if at.config.num_lanes > 1:
        return any(not _is_taken_in(row, step, at.config.block_size) for row in decodes)
    return not decodes or at.config.stages(step.phase) == 1


def _is_taken_in(row: Row, step: SchedulerOutput, block_size: int) -> bool:
    """Its table starts with this step; blocks that a table grows by begin with the row or later."""
    return len(step.appended_blocks.get(row.request_id, ())) * block_size > row.token_start


def _is_stalled(request: Request, step: SchedulerOutput, at: Residency) -> bool:
    """Whether it decodes, and had no row though its next token is known where it is run, its KV is
    there, and so is room for one more position."""
    if request.last_step == step.step_id or not request.decodes or request.num_left == 0:
        return False
    if request.lane != step.lane and at.is_in_flight(request):
        return False
    position = request.num_computed
    is_known = position < request.num_known or position < len(request.tokens)
    has_room = position < request.table_room or at.pools["decode"].num_free > 0
    return is_known and has_room and not request.transfers
