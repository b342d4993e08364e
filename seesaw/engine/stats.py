"""What an engine moved and how long its phases took, beside what its layouts said it would move.

Plain data that adds up; who measures and who predicts is said by `replicas.py` and `predict.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from seesaw.engine.stalls import Stalls
from seesaw.scheduler.counters import StepCounts
from seesaw.scheduler.output import Phase
from seesaw.scheduler.stats import SchedulerStats

SOURCES = ("resident", "copy", "peer", "host")


def _no_bytes() -> dict[str, int]:
    return dict.fromkeys(SOURCES, 0)


@dataclass(slots=True)
class MovedBytes:
    """Bytes over all ranks. Weights by source, resident ones (which stay where they are) too;
    loading the model is not counted."""

    kv_store_bytes: int = 0
    kv_load_bytes: int = 0
    kv_relay_bytes: int = 0
    """From prefill pools to decode pools; those of them that went from rank to rank."""
    kv_peer_bytes: int = 0
    weight_bytes_moved: dict[str, int] = field(default_factory=_no_bytes)

    def add_weights(self, moved: Mapping[str, int]) -> None:
        """One change of layout."""
        self.weight_bytes_moved = {
            source: nbytes + moved.get(source, 0)
            for source, nbytes in self.weight_bytes_moved.items()
        }


@dataclass(slots=True)
class MovementStats(MovedBytes):
    """Counted where it happened; `predicted` was computed from the layouts when it was ordered.

    `prefill_s`, `decode_s`: seconds in which steps of the phase were worked on, over all replicas;
    `reshard_s`: seconds in which the slowest rank could do nothing but change its layout.
    `tier_peak_bytes`: most bytes of the host tier that were held at once, each replica at its own
    peak.
    """

    prefill_s: float = 0.0
    decode_s: float = 0.0
    reshard_s: float = 0.0
    tier_peak_bytes: int = 0
    tier_pieces: int = 0
    """Runs of bytes in the tier that stores and loads went to and came from, as layouts and the
    tier's order have it."""
    expert_loads: int = 0
    """How often an expert's weights were read, over all layers and ranks; with `profile`."""
    predicted: MovedBytes = field(default_factory=MovedBytes)
    stalls: Stalls = field(default_factory=Stalls)

    def add_time(self, phase: Phase, compute_s: float, reshard_s: float) -> None:
        """One step."""
        if phase == "prefill":
            self.prefill_s += compute_s
        else:
            self.decode_s += compute_s
        self.reshard_s += reshard_s


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferBytes:
    """What movements cost in bytes over all ranks of a replica, as layouts and sizes have it.

    KV is copied in whole device blocks of `block_size` tokens; `weights_by_phase` is by the phase
    that begins, empty where there is one layout. `tier_block_bytes` is of one block of the tier;
    `store_pieces` and `load_pieces` are the runs of bytes in it that are written or read where
    its first 0, 1, ... device blocks are copied.
    """

    block_size: int
    store_block_bytes: Mapping[Phase, int]
    load_block_bytes: int
    tier_block_bytes: int
    store_pieces: Mapping[Phase, Sequence[int]]
    load_pieces: Sequence[int]
    relay_block_bytes: Mapping[str, int]
    """Of a block of the prefill pool: by source, "copy" and "peer"."""
    weights_by_phase: Mapping[Phase, Mapping[str, int]]

    def store(self, phase: Phase, num_tokens: int) -> int:
        """Of `num_tokens` in the pool of `phase`; a head that several ranks hold counts once."""
        return -(-num_tokens // self.block_size) * self.store_block_bytes[phase]

    def load(self, num_tokens: int) -> int:
        """To the decode pool; each rank that holds a head loads it."""
        return -(-num_tokens // self.block_size) * self.load_block_bytes

    def relay(self, num_tokens: int) -> tuple[int, int]:
        """To the decode pool, and what of it goes from rank to rank."""
        blocks = -(-num_tokens // self.block_size)
        return blocks * sum(self.relay_block_bytes.values()), blocks * self.relay_block_bytes[
            "peer"
        ]

    def pieces(self, num_tokens: int, phase: Phase | None = None) -> int:
        """Runs of bytes in the tier: of a store from the pool of `phase`, or of a load."""
        by_count = self.load_pieces if phase is None else self.store_pieces[phase]
        whole, rest = divmod(-(-num_tokens // self.block_size), len(by_count) - 1)
        return whole * by_count[-1] + by_count[rest]

    def weights(self, phase: Phase) -> Mapping[str, int]:
        """Of the change to `phase`."""
        return self.weights_by_phase.get(phase, _no_bytes())


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Where the engine stands now, over all replicas; `scheduler` and `transfers` count over its
    life. `kv_usage` is the fraction of the decode pool's blocks that are held."""

    num_running: int
    num_waiting: int
    kv_usage: float
    scheduler: SchedulerStats
    transfers: MovementStats
    counts: StepCounts | None
    """What steps asked of the model since `Engine.count_steps`; None where nobody asked."""
