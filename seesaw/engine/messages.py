"""What driver and worker processes say to each other, as MessagePack.

Owns the form of the messages; who sends what when is `executor.py`'s and `worker.py`'s business.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from seesaw.families.spec import ModelSpec
from seesaw.layout import ParallelLayout
from seesaw.scheduler.output import Phase, SchedulerOutput, TokenLogprobs


class TierSetup(msgspec.Struct, frozen=True):
    """The replica's host tier: `num_blocks` blocks of `block_tokens` tokens."""

    num_blocks: int
    block_tokens: int


class RankSetup(msgspec.Struct, frozen=True, kw_only=True):
    """All that a rank must know before its first step. Layouts are those of a replica (dp 1).

    `prefill` and `decode` are equal where there is one layout. Without `tier` there is one pool.
    """

    rank: int
    num_ranks: int
    replica: int
    prefill: ParallelLayout
    decode: ParallelLayout
    spec: ModelSpec
    dtype: str
    device: str
    block_size: int
    num_blocks: int
    prefill_blocks: int
    tier: TierSetup | None
    reload: Literal["missing", "all"]
    peers: bool
    store_path: str
    num_threads: int
    cores: list[int] | None
    """Cores to stay on; None = wherever the system puts it."""

    def layout(self, phase: Phase) -> ParallelLayout:
        return self.prefill if phase == "prefill" else self.decode


class Setup(msgspec.Struct, frozen=True, tag=True):
    """Be this rank. Files of weights and tier come over the control socket beforehand, in this
    order; a tier only where `setup.tier` says so."""

    setup: RankSetup


class Step(msgspec.Struct, frozen=True, tag=True):
    output: SchedulerOutput


class Inspect(msgspec.Struct, frozen=True, tag=True):
    """Ask for `Inspected`."""


class Stop(msgspec.Struct, frozen=True, tag=True):
    """End when all before it is done."""


ToWorker = Setup | Step | Inspect | Stop


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Weights of the first phase are in place and steps may come."""

    rank: int


class StepReport(msgspec.Struct, tag=True, kw_only=True):
    """One rank's part of a step. `token_ids` is None on ranks that do not draw, else one per row
    with `samples`. Seconds: `busy_s` computing, `reshard_s` held up by a change of layout.
    `weight_bytes` by source, of the change of layout in this step.
    """

    rank: int
    step_id: int
    token_ids: list[int] | None = None
    logprobs: list[TokenLogprobs | None] | None = None
    busy_s: float = 0.0
    reshard_s: float = 0.0
    weight_bytes: dict[str, int] = {}  # msgspec copies empty defaults


class TransferReport(msgspec.Struct, frozen=True, tag=True):
    """One rank's part of a store or load is complete."""

    rank: int
    transfer_id: int
    num_bytes: int
    seconds: float


class Inspected(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """`param_hashes` of the present phase's parameters by name; memory in bytes."""

    rank: int
    phase: str
    param_hashes: dict[str, str]
    device_bytes: int
    rss_bytes: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The worker cannot go on and ends. `where` says what it was doing."""

    rank: int
    where: str
    error: str
    traceback: str


FromWorker = Ready | StepReport | TransferReport | Inspected | Failed

_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


def encode(message: Any) -> bytes:
    return _encoder.encode(message)


def decode_to_worker(data: bytes) -> ToWorker:
    return _to_worker.decode(data)


def decode_from_worker(data: bytes) -> FromWorker:
    return _from_worker.decode(data)
