"""What driver and ranks say to each other: plain data.

Who sends what when is the business of `rank_executor.py` and `worker.py`, its form between
processes that of `wire.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from seesaw.distributed.collectives import Kind
from seesaw.families.spec import ModelSpec
from seesaw.layout import ParallelLayout
from seesaw.layout.format import FormatName
from seesaw.layout.kv import TierOrder
from seesaw.layout.plan import Reload
from seesaw.scheduler.output import Phase, SchedulerOutput, TokenLogprobs


@dataclass(frozen=True, slots=True)
class TierSetup:
    """The replica's host tier: `num_blocks` blocks of `block_tokens` tokens, each in `order`."""

    num_blocks: int
    block_tokens: int
    order: TierOrder


@dataclass(frozen=True, slots=True)
class StepLimits:
    """Most tokens and rows of a step, and most tokens of a row with its cached ones."""

    num_tokens: int
    num_rows: int
    row_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSetup:
    """All that a rank must know before its first step. Layouts are those of a replica (dp 1).

    `prefill` and `decode` are equal where there is one layout. Without `tier` there is one pool.
    """

    rank: int
    num_ranks: int
    prefill: ParallelLayout
    decode: ParallelLayout
    spec: ModelSpec
    dtype: str
    device: str
    block_size: int
    num_blocks: int
    prefill_blocks: int
    tier: TierSetup | None
    relays: bool
    """KV of prompts may go from the ranks' prefill pools to their decode pools."""
    limits: StepLimits
    graph_bytes: int
    """Of device memory for CUDA graphs; 0 = none are recorded."""
    weights: FormatName
    reload: Reload
    peers: bool
    overlap: bool
    """Weights and stores move while steps compute."""
    collectives: Kind
    slot_bytes: int
    """Of shared memory for one hand-over between two ranks."""
    store_path: str
    num_threads: int
    cores: list[int] | None
    """Cores to stay on; None = wherever the system puts it. With `pinned` each thread that computes
    has one of its own, in this order."""
    pinned: bool
    profile: bool
    trace: bool
    """Steps report when their parts began and ended."""

    def layout(self, phase: Phase) -> ParallelLayout:
        return self.prefill if phase == "prefill" else self.decode


@dataclass(frozen=True, slots=True)
class Setup:
    """Be this rank. Files of weights, tier and shared memory of the ranks come over the control
    socket beforehand, in this order; the last two only where `setup.tier` and `setup.collectives`
    say so."""

    setup: RankSetup


@dataclass(frozen=True, slots=True)
class Step:
    output: SchedulerOutput


@dataclass(frozen=True, slots=True)
class Inspect:
    """Ask for `Inspected`."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End when all before it is done."""


ToWorker = Setup | Step | Inspect | Stop


@dataclass(frozen=True, slots=True)
class Ready:
    """Weights of the first phase are in place and steps may come."""

    rank: int


@dataclass(slots=True, kw_only=True)
class StepReport:
    """One rank's part of a step. `token_ids` is None on ranks that do not draw, else one per row
    with `samples`. Seconds: `busy_s` computing, `reshard_s` held up by a change of layout,
    `stage_wait_s` by the stage before it. `visible_s`: in the first step of a phase that computes,
    from the last layer of the phase before to its first, less waiting for a stage.
    `weight_bytes` by source, of a change of layout that this rank has all of by now. `parts`:
    seconds by part of the step, where `profile` asks for them. `spans`: what the rank did when,
    (lane, name, start_s, end_s) of `time.perf_counter()` as `seesaw.trace` has them, where `trace`
    asks for them: of the step, and of what ended in the background since the one before.
    `expert_loads`: how often the weights of one of this rank's experts were read, with `profile`.
    """

    rank: int
    step_id: int
    token_ids: list[int] | None = None
    logprobs: list[TokenLogprobs | None] | None = None
    busy_s: float = 0.0
    reshard_s: float = 0.0
    stage_wait_s: float = 0.0
    visible_s: float | None = None
    weight_bytes: dict[str, int] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)
    spans: list[tuple[str, str, float, float]] = field(default_factory=list)
    expert_loads: int = 0


@dataclass(frozen=True, slots=True)
class TransferReport:
    """One rank's part of a store, load or relay is complete. Its copies began at `start_s` of
    `time.perf_counter()`. `peer_bytes` of `num_bytes` came from other ranks."""

    rank: int
    transfer_id: int
    num_bytes: int
    seconds: float
    start_s: float
    peer_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """`param_hashes` of the present phase's parameters by name; memory in bytes."""

    rank: int
    phase: str
    param_hashes: dict[str, str]
    device_bytes: int
    rss_bytes: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker cannot go on and ends. `where` says what it was doing."""

    rank: int
    where: str
    error: str
    traceback: str


PING = bytes(1)
"""To a worker's control socket, on which a byte above 0 says how many files come with it."""


@dataclass(frozen=True, slots=True)
class Alive:
    """The answer to a ping, by a thread that does nothing else: `doing` says what the rank's main
    thread has been at for `seconds`, `num_copies` how many stores and loads are under way."""

    rank: int
    doing: str
    seconds: float
    num_copies: int


FromWorker = Ready | StepReport | TransferReport | Inspected | Alive | Failed
