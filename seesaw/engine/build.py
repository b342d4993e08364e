"""From a `RankSetup` to a `ModelRunner` that can run steps: what a rank holds in each layout, in
its arena, pools and groups.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from seesaw.distributed import RankGroup
from seesaw.engine.cuda_graphs import CudaRecorder, Recorder
from seesaw.engine.device_clock import clock_of
from seesaw.engine.lanes import Lane
from seesaw.engine.messages import RankSetup, TransferReport
from seesaw.engine.model_runner import ModelRunner
from seesaw.engine.phase_weights import ChangingWeights, MappedWeights, PhaseWeights
from seesaw.engine.rank_phase import RankPhase, StageLink
from seesaw.engine.threads import use_threads
from seesaw.kvcache.pool import KVCache
from seesaw.kvcache.relay import KVRelays, PoolPart, Relayed
from seesaw.kvcache.tier import HostTier
from seesaw.kvcache.transfer import KVTransfers
from seesaw.layers.comm import ALONE, Comm
from seesaw.layout import (
    ArenaPlan,
    ParallelLayout,
    RankRanges,
    ReshardPlan,
    plan_arena,
    plan_reshard,
    rank_ranges,
)
from seesaw.layout.format import WeightFormat
from seesaw.layout.formats import make_format
from seesaw.layout.kv import PIECE_TOKENS, PoolShape, TierShape, owned_heads
from seesaw.layout.parallel import Coordinates
from seesaw.layout.relay import relay_pieces
from seesaw.layout.reshard import Source
from seesaw.log import get_logger
from seesaw.models.cpu_decoder import CpuDecoder
from seesaw.models.decoder import Decoder
from seesaw.plan.weight_bytes import in_place
from seesaw.plan.workspace import COPY_THREADS
from seesaw.scheduler.output import Phase
from seesaw.weights.arena import Arena
from seesaw.weights.image import WeightImage
from seesaw.weights.reshard import Exchange, Resharder

logger = get_logger(__name__)

Report = Callable[[TransferReport | BaseException], None]


@dataclass(frozen=True, slots=True)
class ReplicaWeights:
    """How a replica's weights lie on its ranks in each phase, and what a change moves: the same on
    every rank and for the driver. `phases` has one entry where the layouts are equal, else prefill
    (which is loaded first) and decode; `ranges` and `changes` follow it, by rank and by the phase
    that begins. Ranks that run from the image have neither arenas nor changes.
    """

    fmt: WeightFormat
    phases: tuple[Phase, ...]
    ranges: tuple[Sequence[RankRanges], ...]
    arenas: Sequence[ArenaPlan]
    changes: Mapping[Phase, ReshardPlan]

    def first_load(self) -> ReshardPlan:
        return plan_reshard(self.fmt, None, self.ranges[0], self.arenas, old_index=0, new_index=0)

    def bytes_by_source(self, phase: Phase) -> dict[Source, int]:
        """Of all ranks, when `phase` begins; empty where the layouts are equal."""
        if phase in self.changes:
            return self.changes[phase].bytes_by_source()
        total: Counter[Source] = Counter()
        if len(self.phases) == 2:
            for ranges in self.ranges[self.phases.index(phase)]:
                total.update(in_place(self.fmt, ranges))
        return dict(total)


def plan_weights(setup: RankSetup) -> ReplicaWeights:
    """Arithmetic only: nothing is read or moved."""
    fmt = make_format(setup.weights, setup.spec, torch_dtype(setup.dtype).itemsize)
    layouts: dict[Phase, ParallelLayout] = {"prefill": setup.prefill, "decode": setup.decode}
    if setup.prefill == setup.decode:
        del layouts["prefill"]
    phases = tuple(layouts)
    ranks = range(setup.num_ranks)
    ranges = tuple(
        [rank_ranges(layout, setup.spec, rank) for rank in ranks] for layout in layouts.values()
    )
    if setup.reload == "none":
        return ReplicaWeights(fmt, phases, ranges, (), {})
    arenas = [plan_arena(fmt, ranges, rank) for rank in ranks]
    changes: dict[Phase, ReshardPlan] = {}
    if len(phases) == 2:
        for new, old in ((0, 1), (1, 0)):
            changes[phases[new]] = plan_reshard(
                fmt, ranges[old], ranges[new], arenas, old_index=old, new_index=new,
                reload=setup.reload, peers=setup.peers,
            )  # fmt: skip
    return ReplicaWeights(fmt, phases, ranges, arenas, changes)


def torch_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype), name
    return dtype


def pool_shape(setup: RankSetup, phase: Phase, rank: int) -> PoolShape:
    """A rank's device pool of a phase."""
    ranges = rank_ranges(setup.layout(phase), setup.spec, rank)
    return PoolShape(
        ranges.layers,
        ranges.kv_heads,
        setup.prefill_blocks if phase == "prefill" else setup.num_blocks,
        setup.block_size,
        setup.spec.head_dim,
        torch_dtype(setup.dtype).itemsize,
    )


def tier_shape(setup: RankSetup) -> TierShape:
    assert setup.tier is not None, "there is no tier"
    tier = setup.tier
    return TierShape.of(
        setup.spec, tier.num_blocks, tier.block_tokens, torch_dtype(setup.dtype).itemsize,
        tier.order, setup.block_size,
    )  # fmt: skip


class _Builder:
    """Puts a rank's phases together; collects what is to be closed with them."""

    def __init__(self, setup: RankSetup, report: Report) -> None:
        self.setup = setup
        self.device = torch.device(setup.device)
        self.dtype = torch_dtype(setup.dtype)
        self.release: list[Callable[[], None]] = []
        self.report = report
        self.phase_names: tuple[Phase, ...] = (
            ("decode",) if setup.tier is None else ("prefill", "decode")
        )

    def transfers(self, tier: HostTier) -> KVTransfers:
        """Copies to and from `tier`, which is closed with them."""
        rank, report = self.setup.rank, self.report
        transfers = KVTransfers(
            tier,
            lambda transfer_id, num_bytes, seconds: report(
                TransferReport(rank, transfer_id, num_bytes, seconds, time.perf_counter() - seconds)
            ),
            self.device,
            COPY_THREADS,
            on_error=report,
        )
        self.release += [transfers.close, tier.close]
        return transfers

    def relays(self, phases: Mapping[Phase, RankPhase], group: RankGroup | None) -> KVRelays | None:
        """Between the pools of two phases, where the setup asks for it. Together."""
        setup, rank, report = self.setup, self.setup.rank, self.report
        if not setup.relays:
            return None

        def done(one: Relayed) -> None:
            start_s = time.perf_counter() - one.seconds
            report(
                TransferReport(
                    rank, one.transfer_id, one.num_bytes, one.seconds, start_s, one.peer_bytes
                )
            )

        prefill, decode = (
            PoolPart(phases[name].kv, phases[name].ranges.layers, phases[name].ranges.kv_heads)
            for name in self.phase_names
        )
        pieces = relay_pieces(setup.prefill, setup.decode, setup.spec)
        exchange = None if group is None else group.peer_exchange()
        relays = KVRelays(rank, pieces, prefill, decode, exchange, done, report)
        self.release.insert(0, relays.close)  # what is under way needs the group
        return relays

    def phases(
        self, params: Mapping[Phase, Mapping[str, torch.Tensor]], comms: Mapping[Phase, Comm]
    ) -> dict[Phase, RankPhase]:
        """`params` has the phases; where it has one there is one layout, for both phases if there
        is a tier."""
        decoders: dict[ParallelLayout, Decoder | CpuDecoder] = {}
        phases: dict[Phase, RankPhase] = {}
        for name in self.phase_names:
            own = name if name in params else "decode"
            layout = self.setup.layout(name)
            ranges = rank_ranges(layout, self.setup.spec, self.setup.rank)
            if layout not in decoders:
                decoders[layout] = self.decoder(params[own], ranges, comms[own])
            phases[name] = self._phase(name, ranges, params[own], decoders[layout], comms[own])
        return phases

    def decoder(
        self, params: Mapping[str, torch.Tensor], ranges: RankRanges, comm: Comm
    ) -> Decoder | CpuDecoder:
        make = CpuDecoder if self.setup.weights == "panels" else Decoder
        return make(self.setup.spec, params, ranges, comm)

    def _phase(
        self, name: Phase, ranges: RankRanges, params: Mapping[str, torch.Tensor],
        decoder: Decoder | CpuDecoder, comm: Comm,
    ) -> RankPhase:  # fmt: skip
        setup = self.setup
        layout = setup.layout(name)
        at = layout.coordinates(setup.rank)
        shape = pool_shape(setup, name, setup.rank)
        kv = KVCache.allocate(
            shape.layers.size, shape.num_blocks, shape.kv_heads.size, shape.block_size,
            shape.head_dim, self.dtype, self.device,
            panels=setup.weights == "panels" and shape.block_size % PIECE_TOKENS == 0,
        )  # fmt: skip
        return RankPhase(
            ranges=ranges,
            params=params,
            decoder=decoder,
            kv=kv,
            comm=comm,
            previous=layout.rank_of(Coordinates(0, at.tp, at.pp - 1)) if at.pp else None,
            following=(
                layout.rank_of(Coordinates(0, at.tp, at.pp + 1)) if at.pp + 1 < layout.pp else None
            ),
            stored_heads=owned_heads(layout, setup.spec, setup.rank),
        )

    def runner(
        self,
        phases: Mapping[Phase, RankPhase],
        *,
        links: StageLink | None = None,
        transfers: KVTransfers | None = None,
        relays: KVRelays | None = None,
        weights: PhaseWeights | None = None,
        lane: Lane | None = None,
    ) -> ModelRunner:
        setup = self.setup
        clock = clock_of(self.device, profile=setup.profile) if lane is None else lane.clock
        return ModelRunner(
            setup.rank,
            phases,
            self.device,
            clock,
            setup.limits,
            links=links,
            transfers=transfers,
            relays=relays,
            weights=weights,
            recorder=recorder_for(setup, phases.values()),
            release=self.release,
            overlap=setup.overlap,
            profile=setup.profile,
            trace=setup.trace,
            lane=lane,
        )


def recorder_for(setup: RankSetup, phases: Iterable[RankPhase]) -> Recorder | None:
    """What records decode steps, where the setup asks for it and the layouts allow it in any phase;
    if not because of how ranks talk, that is told."""
    whole = [phase for phase in phases if phase.is_whole]
    if not setup.graph_bytes or not whole:
        return None
    if not any(phase.comm.recordable for phase in whole):
        logger.info("no CUDA graphs: how these ranks talk to each other cannot be recorded")
        return None
    return CudaRecorder(torch.device(setup.device), setup.graph_bytes)


def build_runner(setup: RankSetup, files: Sequence[int], report: Report) -> ModelRunner:
    """A rank of its own process. `files`: as `Setup` has them; they are the runner's from here on.
    Together with the other ranks of the replica."""
    use_threads(setup, own_process=True)
    builder = _Builder(setup, report)
    if builder.device.type == "cuda":
        torch.cuda.set_device(builder.device)  # else some calls would open the first one too
    plan = plan_weights(setup)
    group = None
    if setup.num_ranks > 1:
        group = RankGroup.connect(
            setup.rank, setup.num_ranks, builder.device, setup.collectives, setup.store_path,
            shared_fd=files[-1] if setup.collectives == "shm" else None,
            slot_bytes=setup.slot_bytes,
        )  # fmt: skip
        builder.release.append(group.close)
    comms = {
        phase: ALONE if group is None else group.tp_comm(setup.layout(phase))
        for phase in plan.phases
    }
    # Read once where the layouts are equal: not worth page-locking.
    lock_for = builder.device if plan.changes and builder.device.type == "cuda" else None
    image = WeightImage.attach(files[0], plan.fmt, page_lock_for=lock_for)
    builder.release.append(image.close)
    if setup.reload == "none":
        params, weights = _map_weights(plan, setup.rank, image, builder.dtype)
    else:
        exchange = group.peer_exchange() if group is not None and setup.peers else None
        params, weights = _load_weights(plan, setup.rank, image, builder, exchange)
    transfers = None
    if setup.tier is not None:
        transfers = builder.transfers(HostTier.attach(files[1], tier_shape(setup)))
    phases = builder.phases(params, comms)
    return builder.runner(
        phases,
        links=group,
        transfers=transfers,
        relays=builder.relays(phases, group),
        weights=weights if len(plan.phases) == 2 else None,
    )


_Params = Mapping[Phase, Mapping[str, torch.Tensor]]


def _load_weights(
    plan: ReplicaWeights, rank: int, image: WeightImage, builder: _Builder,
    exchange: Exchange | None,
) -> tuple[_Params, PhaseWeights]:  # fmt: skip
    """An arena with those of the first phase."""
    arena = Arena(plan.arenas[rank], builder.device)
    resharder = Resharder(rank, plan.changes.values(), arena, image, exchange)
    resharder.run(plan.first_load())
    image.check_page_lock(wait=True)
    if not plan.changes:
        image.close()
    params = {
        phase: arena.params(plan.fmt, index, plan.ranges[index][rank], builder.dtype)
        for index, phase in enumerate(plan.phases)
    }
    setup = builder.setup
    weights = ChangingWeights(
        resharder,
        plan.changes,
        {phase: plan.ranges[index][rank].layers for index, phase in enumerate(plan.phases)},
        background=setup.overlap,
        on_error=builder.report,
        cores=setup.cores,
    )
    builder.release.insert(0, weights.close)  # before what it reads from and writes to
    return params, weights


def _map_weights(
    plan: ReplicaWeights, rank: int, image: WeightImage, dtype: torch.dtype
) -> tuple[_Params, PhaseWeights]:
    """Those of all phases, where they lie in the image."""
    params = {
        phase: image.params(plan.ranges[index][rank], dtype)
        for index, phase in enumerate(plan.phases)
    }
    return params, MappedWeights(plan.fmt, params)


def build_local_runner(
    setup: RankSetup, params: Mapping[str, torch.Tensor], tier: HostTier | None, report: Report,
    lane: Lane | None = None,
) -> ModelRunner:  # fmt: skip
    """The only rank, in this process, with all parameters in place; the tier becomes its own.
    `lane`: the first of two, where the device has lanes."""
    builder = _Builder(setup, report)
    transfers = None if tier is None else builder.transfers(tier)
    phases = builder.phases({"decode": params}, {"decode": ALONE})
    relays = builder.relays(phases, None)
    return builder.runner(phases, transfers=transfers, relays=relays, lane=lane)


def build_beside(setup: RankSetup, first: ModelRunner, lane: Lane, report: Report) -> ModelRunner:
    """The other lane of the device of `first`: with its weights and pools, and a decoder of its
    own, since that has memory to compute in."""
    builder = _Builder(setup, report)
    phases = {
        name: replace(phase, decoder=builder.decoder(phase.params, phase.ranges, phase.comm))
        for name, phase in first.phases.items()
    }
    return builder.runner(phases, lane=lane)
