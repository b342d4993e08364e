"""What the scheduler tells the workers and hears back: plain data, the same for every policy and
executor.

A step is one `SchedulerOutput`. Each device executes steps in the order of `step_id`, so blocks
that a step releases may be written by a later one. A row names positions, not tokens: a token that
an earlier step is still drawing is known to the worker by the time it runs the row, which is what
lets several steps be in flight.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from seesaw.sampling_params import SamplingParams


class Row(NamedTuple):
    """Positions `token_start .. token_start + num_tokens` of one request through layers
    `layer_start .. layer_stop`.

    `samples`: the row ends at the request's last token and at the last layer, so its logits draw
    the next one.
    """

    request_id: str
    token_start: int
    num_tokens: int
    layer_start: int
    layer_stop: int
    samples: bool


@dataclass(slots=True)
class Batch:
    """Rows that run together on one data-parallel replica with a share of its compute units."""

    rows: list[Row]
    replica: int = 0
    compute_share: float = 1.0


@dataclass(frozen=True, slots=True)
class NewRequest:
    """All that a worker must know of a request, sent once. `seed` is final: no None."""

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    seed: int
    eos_token_ids: tuple[int, ...]


@dataclass(slots=True)
class SchedulerOutput:
    """One step. `appended_blocks` extends block tables (a request's first entry starts its table).

    `preempted` requests lose their table but stay known; `finished` ones are forgotten; none is in
    both. Both take effect before anything else of this step. `block_copies` are (source,
    destination) pairs done before any row runs. `poison_blocks` (debug runs only) were freed:
    filled with NaN first, so that a stale read shows. The fields from `stores` on belong to the
    host tier and re-sharding; empty where there is one layout.
    """

    step_id: int
    layout_epoch: int = 0
    new_requests: list[NewRequest] = field(default_factory=list)
    appended_blocks: dict[str, list[int]] = field(default_factory=dict)
    block_copies: list[tuple[int, int]] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    preempted: list[str] = field(default_factory=list)
    lanes: list[Batch] = field(default_factory=list)
    poison_blocks: list[int] = field(default_factory=list)
    stores: list[Any] = field(default_factory=list)
    loads: list[Any] = field(default_factory=list)
    compactions: list[Any] = field(default_factory=list)
    reshard: Any = None

    @property
    def num_tokens(self) -> int:
        return sum(row.num_tokens for lane in self.lanes for row in lane.rows)


class TokenLogprobs(NamedTuple):
    """Log-probabilities at one position: of the drawn token (with its rank from 1) and of the most
    probable ones.
    """

    sampled: float
    sampled_rank: int
    top_ids: list[int]
    top: list[float]


@dataclass(slots=True)
class ModelOutput:
    """Tokens drawn by a step, one per row with `samples`, in the order of lanes and rows.

    `logprobs` is None where no row asked for any, else one entry (or None) per token.
    """

    step_id: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs | None] | None = None
