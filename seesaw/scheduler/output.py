"""What the scheduler tells the workers and hears back: plain data, the same for every policy and
executor.

A step is one `SchedulerOutput`. Each device executes steps in the order of `step_id`, so blocks
that a step releases may be written by a later one. A row names positions, not tokens: a token that
an earlier step is still drawing is known to the worker by the time it runs the row, which is what
lets several steps be in flight.

Where a device has two lanes, it takes in what steps say of requests and blocks in the order of
`step_id` all the same, and runs the rows of each lane's steps in their order, beside the other's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from seesaw.sampling_params import SamplingParams

Phase = Literal["prefill", "decode"]
"""Which of the two layouts, and so which device pool, a step runs in. With one layout and no host
tier every step is of phase "decode"."""


class Row(NamedTuple):
    """Positions `token_start .. token_start + num_tokens` of one request through layers
    `layer_start .. layer_stop`.

    Where these do not begin with the first one, an earlier row of the same positions ended there;
    where they do not end with the last one, each rank keeps the hidden states for the row that goes
    on, until the request has ended or was preempted. `samples`: the row ends at the request's last
    token and at the last layer, so its logits draw the next one.
    """

    request_id: str
    token_start: int
    num_tokens: int
    layer_start: int
    layer_stop: int
    samples: bool

    def decodes(self, num_prompt: int) -> bool:
        """Whether it continues an answer to a prompt of so many tokens: it is no prompt, nor what
        is computed again."""
        whole = self.samples and not self.layer_start
        return whole and self.num_tokens == 1 and self.token_start >= num_prompt


@dataclass(slots=True)
class Batch:
    """Rows that run together, on this share of the device's compute units from now on: of lane 0
    they are the first ones, of lane 1 the last."""

    rows: list[Row]
    compute_share: float = 1.0


class Store(NamedTuple):
    """Device blocks of `phase`'s pool to tier blocks, once the rows of this step have run.

    `num_tokens` positions of the request from `token_start` on, which is the begin of a tier block:
    those before it are in the tier already, unchanged. `blocks` and `tier_blocks` are those of
    these positions, in order; each rank copies its layers and KV heads, whole device blocks. The
    request's table is empty from then on.
    """

    transfer_id: int
    request_id: str
    phase: Phase
    blocks: list[int]
    tier_blocks: list[int]
    num_tokens: int
    token_start: int = 0


class Load(NamedTuple):
    """Tier blocks to blocks of the decode pool, in the background from the begin of this step, in
    any phase. `blocks` become the request's table. A rank begins when its own part of the stores
    `after` is done: they still read these blocks, or write these tier blocks.

    No row of the request runs before all ranks are done, or else the step of the row `awaits` it.
    """

    transfer_id: int
    request_id: str
    tier_blocks: list[int]
    blocks: list[int]
    num_tokens: int
    after: tuple[int, ...] = ()


class Relay(NamedTuple):
    """Blocks of the prefill pool to blocks of the decode pool, from rank to rank without the tier,
    in the background once the rows of this step have run.

    The first `num_tokens` positions of the request, in order; what each rank takes from which
    follows from the layouts. `to_blocks` become the request's table; no row of it runs before all
    ranks are done.
    """

    transfer_id: int
    request_id: str
    blocks: list[int]
    to_blocks: list[int]
    num_tokens: int


class TransferDone(NamedTuple):
    """A store, load or relay is complete on every rank. `num_bytes` over all ranks, `peer_bytes` of
    them from rank to rank; `seconds` of the slowest, from the begin of its copies."""

    transfer_id: int
    num_bytes: int = 0
    seconds: float = 0.0
    peer_bytes: int = 0


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
    """One step of one replica, in one of its lanes. What it asks for takes effect in the order of
    the fields:

    `finished` requests are forgotten, `preempted` ones lose their table but stay known (none is in
    both). `reshard`: from here on weights and pool are those of `phase`. `announce`: the policy
    expects a change to that phase within a few steps; it may be wrong. `appended_blocks` extends
    block tables (a request's first entry starts its table). `known_tokens` sets tokens from a
    position on that a rank may not know: those drawn by the last stage of a pipeline, or in the
    other layout. `poison_blocks` (debug runs only) were freed in the pool of `phase`: filled with
    NaN, so that a stale read shows. `block_copies` are (source, destination) pairs done before any
    row runs. `loads` begin; each rank waits until its own part of the transfers in `awaits` is
    done, whatever others have done; `batches` run, `stores` and `relays` begin. A step without rows
    is allowed where it moves something.
    """

    step_id: int
    phase: Phase = "decode"
    reshard: bool = False
    announce: Phase | None = None
    finished: list[str] = field(default_factory=list)
    preempted: list[str] = field(default_factory=list)
    new_requests: list[NewRequest] = field(default_factory=list)
    appended_blocks: dict[str, list[int]] = field(default_factory=dict)
    known_tokens: dict[str, tuple[int, list[int]]] = field(default_factory=dict)
    poison_blocks: list[int] = field(default_factory=list)
    block_copies: list[tuple[int, int]] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    awaits: list[int] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    stores: list[Store] = field(default_factory=list)
    relays: list[Relay] = field(default_factory=list)
    lane: int = 0

    @property
    def rows(self) -> Sequence[Row]:
        """Of all batches, in their order."""
        if len(self.batches) == 1:
            return self.batches[0].rows
        return [row for batch in self.batches for row in batch.rows]

    @property
    def num_tokens(self) -> int:
        return sum(row.num_tokens for row in self.rows)


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
    """Tokens drawn by a step, one per row with `samples`, in the order of batches and rows.

    `logprobs` is None where no row asked for any, else one entry (or None) per token. `busy_s`:
    seconds that the slowest rank computed, `reshard_s` that it was held up by a change of layout,
    `stage_wait_s` by the stage before it. `visible_s`: where it is the first that computes in a new
    layout, seconds that no layer ran between the two, mean over ranks, less waiting for a stage.
    `parts`: seconds of the slowest rank by part of the step, where these are measured.
    `expert_loads`: how often an expert's weights were read, over all layers and ranks, where this
    is counted (`profile`); of a simulated step as many as are expected.
    """

    step_id: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs | None] | None = None
    busy_s: float = 0.0
    reshard_s: float = 0.0
    stage_wait_s: float = 0.0
    visible_s: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    expert_loads: float = 0.0
