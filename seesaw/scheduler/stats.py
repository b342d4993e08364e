"""What a scheduler counts over its life."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Self


@dataclass(slots=True)
class SchedulerStats:
    """Counters over the scheduler's life."""

    num_steps: int = 0
    num_preemptions: int = 0
    """Requests that yielded for want of blocks and are computed again."""
    num_scheduled_tokens: int = 0
    """Of rows: a token counts once in each step that runs some of its layers."""
    num_computed_tokens: int = 0
    """Of rows that run the last layer: a token counts once, however many steps it took."""
    num_discarded_tokens: int = 0
    """Drawn past a stop, or for an aborted request."""
    num_cached_tokens: int = 0
    """Prompt tokens whose KV was shared instead of computed."""
    num_transitions: int = 0
    """Changes of phase, in either direction."""
    num_redecisions: int = 0
    """Changes between two layouts in turns and the decode layout alone, as lengths turned out."""
    num_prefill_steps: int = 0
    """Steps with rows of phase "prefill"; their tokens."""
    num_prefill_tokens: int = 0
    num_decode_steps: int = 0
    """Steps with rows that continue an answer, not of what is computed again, and those rows."""
    num_decode_rows: int = 0
    num_stored: int = 0
    """Requests stored to the tier, those stored back among them; requests loaded from it."""
    num_stored_back: int = 0
    """Residents that yielded for want of blocks and went to the tier."""
    num_loaded: int = 0
    num_relayed: int = 0
    """Prompts that went from the prefill pool straight to the decode pool."""
    num_parked: int = 0
    """Times that a running request gave its blocks to others and went on from the tier later; how
    often one was fetched from there."""
    num_fetched: int = 0
    tier_peak_blocks: int = 0
    """Most tier blocks that were held at once."""

    @property
    def mean_decode_batch(self) -> float:
        """Rows that continue an answer per step that has any."""
        return self.num_decode_rows / self.num_decode_steps if self.num_decode_steps else 0.0

    @classmethod
    def total(cls, parts: Iterable[Self]) -> Self:
        """Sums over replicas."""
        total = cls()
        for part in parts:
            for field in fields(cls):
                setattr(total, field.name, getattr(total, field.name) + getattr(part, field.name))
        return total
