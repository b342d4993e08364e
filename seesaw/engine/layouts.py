"""Which layouts an engine runs: those given, else chosen for the model and the devices there are.

Settled, and every error told, before any weight is read. What a rank then holds is the business of
`seesaw.layout`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch

from seesaw.config import DType, EngineConfig
from seesaw.distributed import choose, links_name
from seesaw.engine.at_hand import AtHand, calibrated, of_cpu, of_gpus
from seesaw.engine.host import device_space, has_kernels, usable_cores
from seesaw.errors import ConfigError, DoesNotFit
from seesaw.families.spec import ModelSpec
from seesaw.layout.pairs import check_pair, layouts_for
from seesaw.layout.parallel import ParallelLayout
from seesaw.log import get_logger
from seesaw.plan.choice import LayoutChoice
from seesaw.plan.cost_model import CostModel
from seesaw.plan.device_memory import DeviceSplit, Setting, longest_wanted
from seesaw.plan.machine_files import device_by_torch_name, local_path
from seesaw.plan.search import MOST_DRAWN, search
from seesaw.plan.ways import known_dtypes
from seesaw.plan.workload import Constant, Lengths, Listed, Workload, mean_lengths
from seesaw.scheduler import policies

logger = get_logger(__name__)

ASSUMED = Lengths(1024, 256)
"""Requests that layouts are chosen for where nobody said which ones are to come."""

ASSUMED_REQUESTS = 1000

COMMON_LINKS = "processes of one machine"
"""What comes with seesaw for CPUs that were not measured: of any processes that share memory."""


def choose_layouts(
    config: EngineConfig, spec: ModelSpec, dtype: torch.dtype, device: torch.device
) -> LayoutChoice:
    """The layouts of `config`, or for `spec` in `dtype` on as many devices as `config` or the
    machine says. More ranks than cores are warned of, once.

    Raises ConfigError where the two do not go together, the model cannot be cut so, or there are
    fewer devices.
    """
    given = config.given_layouts
    if given is not None:
        prefill, decode = given
        check_pair(prefill, decode, spec)
        choice = LayoutChoice(prefill, decode, "as asked for")
        _check_devices(choice.num_ranks, device)
    else:
        num_visible = torch.cuda.device_count() if device.type == "cuda" else 1
        num_devices = config.num_devices or num_visible
        _check_devices(num_devices, device)
        choice = _choose(config, spec, dtype, device, num_devices)
    if device.type == "cpu" and choice.num_ranks > max(1, int(usable_cores())):
        logger.warning(
            "%d ranks on %g usable cores: they take turns, which is slower than one rank per core",
            choice.num_ranks,
            usable_cores(),
        )
    return choice


def settled(config: EngineConfig, choice: LayoutChoice) -> EngineConfig:
    """The settings with which `choice` runs. Where it was made here and is one layout, those that
    are about going from one to another do not count."""
    if config.max_num_batched_tokens is None:
        config = replace(config, max_num_batched_tokens=choice.max_num_batched_tokens)
    if choice.reshard_from != "auto":
        config = replace(config, reshard_from=choice.reshard_from)
    was_chosen = config.given_layouts is None and choice.num_ranks > 1
    if not was_chosen or choice.prefill != choice.decode:
        return config
    config = replace(config, reload="auto", reshard_from="auto")
    if not policies.uses_tier(config.resolve_policy(False)):
        config = replace(config, host_kv_memory=None)
    return config


def _check_devices(num_devices: int, device: torch.device) -> None:
    if device.type != "cuda":
        return
    num_visible = torch.cuda.device_count()
    if num_devices > num_visible:
        raise ConfigError(
            f"{num_devices} devices are asked for, but {num_visible} CUDA devices are visible. "
            f"Give layouts of {num_visible} devices or less, or check CUDA_VISIBLE_DEVICES."
        )


def _choose(
    config: EngineConfig,
    spec: ModelSpec,
    dtype: torch.dtype,
    device: torch.device,
    num_devices: int,
) -> LayoutChoice:
    """What the planner recommends; by a rule where nothing is known of the devices."""
    replicas = ParallelLayout(dp=num_devices)
    if num_devices == 1:
        return LayoutChoice(replicas, replicas, "the default")
    name = str(dtype).removeprefix("torch.")
    at_hand = figures(device, num_devices, name)
    if isinstance(at_hand, str):
        return _by_rule(config, spec, dtype, device, num_devices, at_hand)
    at_hand = _with_own_links(at_hand, config)
    planned = _plan(replace(config, dtype=cast(DType, name)), spec, device, at_hand)
    if isinstance(planned, str):
        return _by_rule(config, spec, dtype, device, num_devices, planned)
    return planned


def _plan(
    config: EngineConfig, spec: ModelSpec, device: torch.device, at_hand: AtHand
) -> LayoutChoice | str:
    """The best layouts for an assumed job, or in words why there are none."""
    policy = config.resolve_policy(False)
    uses_tier = None if config.policy == "auto" else policies.uses_tier(policy)
    workload, count = expected_job(config, spec)
    prompt, answer = mean_lengths(workload, min(count, MOST_DRAWN), seed=0)
    job = f"{count} requests of {prompt:.0f} tokens in and {answer:.0f} out"
    (machine,) = at_hand.machines
    try:
        found = search(
            spec, at_hand.machines, workload, count, config,
            uses_tier=uses_tier, space=device_space(device, len(machine.devices)),
            native=has_kernels(device), splits_layers=policies.splits_layers(policy),
        )  # fmt: skip
    except DoesNotFit:
        return f"no layout has room for {job}"
    best = found.recommended
    return LayoutChoice(
        best.prefill,
        best.decode,
        f"planned for {job}, see `seesaw plan`; {at_hand.source}; {found.verdict}",
        best.reshard_from,
        found.times,
        best.max_num_batched_tokens,
    )


def figures(device: torch.device, num_devices: int, dtype: str) -> AtHand | str:
    """The way to use this machine with so many devices, or in words why its figures are of no
    use."""
    if local_path().is_file():
        try:
            found = calibrated()
        except ConfigError as error:
            return f"{error} Run `seesaw calibrate` again"
        where = f"{local_path()} has no figures for"
    elif device.type == "cuda":
        names = [torch.cuda.get_device_name(index) for index in range(num_devices)]
        unknown = [name for name in names if device_by_torch_name(name) is None]
        if unknown:
            return f"no figures for {unknown[0]}, run `seesaw calibrate`"
        found = of_gpus(names)
        where = "there are no figures for"
    else:
        found = of_cpu()
        where = "there are no figures for"
    for machine in found.machines:
        if machine.kind == "cuda" and len(machine.devices) > num_devices:
            machine = machine.first(num_devices)
        if machine.kind == device.type and len(machine.devices) == num_devices:
            known = known_dtypes(machine)
            if dtype not in known:
                flags = " ".join(f"--dtype {one}" for one in (*known, dtype))
                return f"{where} {dtype}, run `seesaw calibrate {flags}`"
            return found._replace(machines=(machine,))
    return f"{where} {num_devices} devices of kind {device.type}, run `seesaw calibrate`"


def measured_figures(device: torch.device, num_devices: int, dtype: str) -> AtHand | str:
    """The same for those who need more than an order of layouts: what comes with seesaw for CPUs is
    of no particular one."""
    if device.type == "cpu" and not local_path().is_file():
        return "nothing is known of this CPU, run `seesaw calibrate`"
    return figures(device, num_devices, dtype)


def replica_costs(
    spec: ModelSpec, layouts: LayoutChoice, device: torch.device, dtype: torch.dtype
) -> CostModel | str:
    """What steps cost here in the decode layout, of any replica; in words why that is not known."""
    name = str(dtype).removeprefix("torch.")
    found = measured_figures(device, layouts.num_ranks, name)
    if isinstance(found, str):
        return found
    replica = layouts.decode.replica
    return CostModel(spec, found.machines[0].part(0, replica.num_ranks), replica, name)


def _with_own_links(at_hand: AtHand, config: EngineConfig) -> AtHand:
    """The same, with links measured now where its figures are of others than those that will join
    the ranks."""
    (machine,) = at_hand.machines
    if machine.kind != "cpu":
        return at_hand
    kind = choose(config.collectives, "cpu")
    known = {links_name(kind, len(machine.devices))}
    if kind != "tcp":
        known.add(COMMON_LINKS)
    if machine.links.name in known:
        return at_hand
    # Here, since it starts processes, which few plans need.
    from seesaw.engine.link_probe import with_links_of

    measured = with_links_of(machine, kind)
    source = f"{at_hand.source}; links measured now, {measured.links.name}"
    return at_hand._replace(machines=(measured,), source=source)


def expected_job(config: EngineConfig, spec: ModelSpec) -> tuple[Workload, int]:
    """The requests that are expected, less those that are too long to be served and will be
    refused; where nobody said, ASSUMED, or as much of each as the longest request may have."""
    longest = longest_wanted(config, spec)
    lengths = [Lengths(*one) for one in config.expected_lengths if sum(one) <= longest]
    if lengths:
        count = config.expected_requests or max(ASSUMED_REQUESTS, len(lengths))
        return Listed("expected", lengths), count
    share = min(1.0, longest / sum(ASSUMED))
    assumed = Lengths(*(max(1, int(share * tokens)) for tokens in ASSUMED))
    return Constant("assumed", "assumed", assumed), config.expected_requests or ASSUMED_REQUESTS


def _by_rule(
    config: EngineConfig,
    spec: ModelSpec,
    dtype: torch.dtype,
    device: torch.device,
    num_devices: int,
    why: str,
) -> LayoutChoice:
    """Replicas where the model fits one device, since they need not talk to each other; else as
    many stages as can be for prompts, and as wide a cut as can be for answers. As many replicas as
    `config` says, if it does."""
    replicas = ParallelLayout(dp=num_devices)
    wanted = config.data_parallel_size
    has_tier = policies.uses_tier(config.resolve_policy(False))
    setting = Setting(
        config=config,
        spec=spec,
        element_bytes=dtype.itemsize,
        kv_element_bytes=dtype.itemsize,
        space=device_space(device, num_devices),
        prefill=replicas,
        decode=replicas,
        uses_tier=has_tier,
        native=has_kernels(device),
        splits_layers=policies.splits_layers(config.resolve_policy(False)),
    )
    if wanted in (None, num_devices) and DeviceSplit.of(setting).fits:
        return LayoutChoice(replicas, replicas, f"the model fits one device; {why}")
    dp = wanted or 1
    options = layouts_for(num_devices, spec, dp)
    if not options:
        fewer = next(n for n in range(num_devices - dp, 0, -dp) if layouts_for(n, spec, dp))
        raise ConfigError(
            f"num_devices={num_devices}: {spec.architecture} does not fit one device, and its "
            f"{spec.num_hidden_layers} layers and {spec.num_attention_heads} query heads cannot be "
            f"cut into {num_devices // dp} parts. Use num_devices={fewer}."
        )
    reason = "the model does not fit one device" if wanted is None else f"{dp} replicas asked for"
    prefill = max(options, key=lambda layout: layout.pp)
    decode = max(options, key=lambda layout: layout.tp)
    if config.policy != "auto" and not has_tier:
        reason = f"{reason}; policy {config.policy} runs one layout"
        return LayoutChoice(decode, decode, f"{reason}; {why}")
    return LayoutChoice(prefill, decode, f"{reason}; {why}")
