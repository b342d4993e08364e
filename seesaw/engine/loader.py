"""From a checkpoint to replicas that can run steps: device, dtype, layouts, memory plan, weights,
pools, processes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from seesaw import envs
from seesaw.config import EngineConfig
from seesaw.distributed import Kind, choose
from seesaw.engine.build import (
    Report,
    build_beside,
    build_local_runner,
    tier_shape,
    torch_dtype,
)
from seesaw.engine.executor import InProcessExecutor
from seesaw.engine.host import device_space, has_kernels
from seesaw.engine.lane_plan import plan_lanes
from seesaw.engine.lanes import Lane, make_lanes
from seesaw.engine.layouts import choose_layouts, measured_figures, replica_costs, settled
from seesaw.engine.messages import RankSetup, StepLimits, TierSetup
from seesaw.engine.model_runner import ModelRunner
from seesaw.engine.predict import predict_bytes
from seesaw.engine.replicas import Replicas
from seesaw.engine.rotation import rotation_tokens
from seesaw.engine.step_costs import StepCosts
from seesaw.engine.threads import check_threads, threads_of_rank, use_threads
from seesaw.errors import ConfigError
from seesaw.families.spec import ModelSpec
from seesaw.kvcache.tier import HostTier
from seesaw.layout.format import FormatName
from seesaw.layout.panels import panels_suit
from seesaw.log import get_logger
from seesaw.ops.native import why_plain_torch
from seesaw.ops.triton_backend import on_triton
from seesaw.plan.choice import LayoutChoice
from seesaw.plan.memory import MemoryPlan, plan_memory
from seesaw.plan.weight_bytes import dtype_of, from_peers, reload_of
from seesaw.scheduler import policies
from seesaw.scheduler.build import make_schedulers
from seesaw.scheduler.scheduler import Scheduler
from seesaw.sizes import format_bytes, parse_cores
from seesaw.weights.checkpoint import Checkpoint

if TYPE_CHECKING:
    from seesaw.engine.ranks import Ranks

logger = get_logger(__name__)

Progress = Callable[[int, int], None]

STEPS_IN_FLIGHT = 2
"""One runs while the next waits for it: one device is never idle between steps."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """`costs`: what predicts the seconds of steps, or in words why nothing does; for a trace."""

    replicas: Replicas
    memory_plan: MemoryPlan
    layouts: LayoutChoice
    dtype: str
    costs: StepCosts | str


def load_replicas(
    config: EngineConfig,
    checkpoint: Checkpoint,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
    *,
    trace: bool = False,
) -> Loaded:
    """Plan, then load. Raises ConfigError before any weight is read. `trace`: ranks report their
    spans."""
    device = pick_device(config.device)
    dtype = pick_dtype(config, checkpoint.spec, device)
    layouts = choose_layouts(config, checkpoint.spec, dtype, device)
    config = settled(config, layouts)
    config.check_transition(layouts.prefill, layouts.decode)
    check_threads(config, device, layouts.num_ranks)
    policy = config.resolve_policy(layouts.prefill != layouts.decode)
    uses_tier = policies.uses_tier(policy)
    _check_experts(policy, checkpoint)
    space = device_space(device, layouts.num_ranks)
    # First, so that the log says why there are no kernels where the plan then needs them.
    weights = _weight_format(checkpoint.spec, dtype, layouts, device)
    name = str(dtype).removeprefix("torch.")
    lanes = plan_lanes(config, checkpoint.spec, name, layouts, device, native=weights == "panels")
    plan = plan_memory(
        config, checkpoint.spec, dtype.itemsize, space, layouts, uses_tier,
        native=has_kernels(device), splits_layers=policies.splits_layers(policy),
        num_lanes=lanes.num_lanes,
    )  # fmt: skip
    rotation = rotation_tokens(config, checkpoint.spec, name, layouts, plan, device)
    schedulers = make_schedulers(
        config,
        plan,
        layouts,
        checkpoint.spec.num_hidden_layers,
        policy,
        max_steps_in_flight=1 if envs.disable_overlap() else STEPS_IN_FLIGHT,
        debug=envs.debug_blocks(),
        rotation_tokens=rotation,
        costs=lambda _: replica_costs(checkpoint.spec, layouts, device, dtype),
        share_units=lanes.units,
        lane_costs=lanes.costs,
    )
    logger.info("%s on %s in %s", checkpoint.name, device, name)
    logger.info("%s", layouts.describe())
    logger.info("%s", plan.describe())
    setup = _setup(config, checkpoint, plan, layouts, dtype, device, weights, trace)
    if layouts.num_ranks == 1 and (ranks is None or lanes.num_lanes > 1):
        replicas = _load_here(schedulers, setup, checkpoint, progress, lanes.num_lanes)
    else:
        # Here, since one device needs none of the libraries that join processes.
        from seesaw.engine.rank_loader import load_ranks

        with _timed(checkpoint):
            replicas = load_ranks(schedulers, setup, checkpoint, progress, ranks)
    costs = _step_costs(setup, layouts, device) if trace else "no trace was asked for"
    return Loaded(replicas, plan, layouts, setup.dtype, costs)


def _check_experts(policy: str, checkpoint: Checkpoint) -> None:
    if policies.is_for_experts(policy) and not checkpoint.spec.num_experts:
        logger.warning(
            "policy=%r saves reading experts again, and %s has none: prompts wait longer for "
            "nothing. Use policy='continuous'.",
            policy,
            checkpoint.name,
        )


def _step_costs(setup: RankSetup, layouts: LayoutChoice, device: torch.device) -> StepCosts | str:
    found = measured_figures(device, layouts.num_ranks, setup.dtype)
    return found if isinstance(found, str) else StepCosts(setup, found.machines[0], found.source)


def _setup(
    config: EngineConfig, checkpoint: Checkpoint, plan: MemoryPlan, layouts: LayoutChoice,
    dtype: torch.dtype, device: torch.device, weights: FormatName, trace: bool,
) -> RankSetup:  # fmt: skip
    """Of the first rank; `_of_rank` makes the others of it."""
    return RankSetup(
        rank=0,
        num_ranks=layouts.num_ranks // layouts.dp,
        prefill=layouts.prefill.replica,
        decode=layouts.decode.replica,
        spec=checkpoint.spec,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        block_size=plan.block_size,
        num_blocks=plan.num_blocks,
        prefill_blocks=plan.prefill_blocks,
        relays=plan.relays,
        tier=(
            TierSetup(plan.tier_blocks, plan.tier_block_size, config.tier_order)
            if plan.tier_blocks
            else None
        ),
        limits=StepLimits(
            num_tokens=config.step_tokens,
            num_rows=min(config.max_num_seqs, config.step_tokens),
            row_tokens=plan.max_model_len,
        ),
        graph_bytes=plan.graph_bytes,
        weights=weights,
        reload=reload_of(config, weights),
        peers=from_peers(config, "cuda" if device.type == "cuda" else "cpu"),
        overlap=config.overlap,
        collectives=_collectives(config, layouts, device),
        slot_bytes=_handover_bytes(config, checkpoint.spec, dtype, layouts),
        store_path="",
        num_threads=threads_of_rank(config, layouts.num_ranks, native=weights == "panels"),
        cores=None if config.cpu_cores is None else list(parse_cores(config.cpu_cores)),
        pinned=config.cpu_cores is not None,
        profile=config.profile,
        trace=trace,
    )


def _weight_format(
    spec: ModelSpec, dtype: torch.dtype, layouts: LayoutChoice, device: torch.device
) -> FormatName:
    """Panels where the C++ kernels run the model; what keeps them from it on a CPU is told."""
    if device.type != "cpu" or on_triton(torch.empty(0, device=device)):
        return "plain"
    name = str(dtype).removeprefix("torch.")
    why_not = why_plain_torch() or panels_suit(spec, name, (layouts.prefill, layouts.decode))
    if why_not is None:
        return "panels"
    logger.warning("plain torch computes, which is slower than seesaw's kernels: %s", why_not)
    return "plain"


def _collectives(config: EngineConfig, layouts: LayoutChoice, device: torch.device) -> Kind:
    if config.collectives != "auto" and layouts.num_ranks == layouts.dp:
        raise ConfigError(
            f"collectives={config.collectives!r}: in layout {layouts.decode} no two devices share "
            "a model, so none talk. Leave it out, or give layouts such as tp2."
        )
    return choose(config.collectives, device.type)


def _handover_bytes(
    config: EngineConfig, spec: ModelSpec, dtype: torch.dtype, layouts: LayoutChoice
) -> int:
    """The most that a stage hands to the next one at a time."""
    if layouts.prefill.pp == layouts.decode.pp == 1:
        return 0
    return config.step_tokens * spec.hidden_size * dtype.itemsize


def _load_here(
    schedulers: list[Scheduler],
    setup: RankSetup,
    checkpoint: Checkpoint,
    progress: Progress | None,
    num_lanes: int,
) -> Replicas:
    """One device: in this process, its weights read straight to their place."""
    lanes: list[Lane] = []
    with contextlib.ExitStack() as undo:
        tier = None
        if setup.tier is not None:
            tier = HostTier.create(tier_shape(setup))
            undo.callback(tier.close)

        def make_runner(report: Report, go_on: Callable[[], None]) -> ModelRunner:
            def tell(done: int, total: int) -> None:
                go_on()
                if progress is not None:
                    progress(done, total)

            use_threads(setup, own_process=False)
            params = checkpoint.load_params(
                torch_dtype(setup.dtype), torch.device(setup.device), tell, setup.weights
            )
            if num_lanes > 1:
                lanes.extend(make_lanes(setup))
            return build_local_runner(setup, params, tier, report, lanes[0] if lanes else None)

        def make_beside(first: ModelRunner, report: Report) -> ModelRunner:
            use_threads(setup, own_process=False)
            return build_beside(setup, first, lanes[1], report)

        with _timed(checkpoint):
            executor = InProcessExecutor(make_runner, make_beside if num_lanes > 1 else None)
        undo.pop_all()
    return Replicas(
        executor,
        schedulers,
        predict=predict_bytes(setup),
        commit_tier=None if tier is None else (lambda _replica, blocks: tier.commit(blocks)),
    )


@contextlib.contextmanager
def _timed(checkpoint: Checkpoint) -> Iterator[None]:
    start_s = time.perf_counter()
    yield
    num_bytes = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    seconds = time.perf_counter() - start_s
    logger.info("weights in place: %s of files in %.1f s", format_bytes(num_bytes), seconds)


def pick_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device='cuda': torch sees no CUDA device. Use device='cpu', or check the driver and "
            "that torch was installed with CUDA (seesaw collect-env shows both)."
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name, 0) if name == "cuda" else torch.device(name)


def pick_dtype(config: EngineConfig, spec: ModelSpec, device: torch.device) -> torch.dtype:
    """As a plan has it, where the device computes in it. Raises ConfigError."""
    name = dtype_of(config, spec)
    if name == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError(
            f"dtype=bfloat16: {torch.cuda.get_device_name(device)} does not support it. "
            "Use dtype='float16'."
        )
    return torch_dtype(name)
