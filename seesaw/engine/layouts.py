"""Which layouts an engine runs: those given, else chosen for the model and the devices there are.

Settled, and every error told, before any weight is read. What a rank then holds is the business of
`seesaw.layout`.
"""

from __future__ import annotations

import torch

from seesaw.config import EngineConfig
from seesaw.engine.host import device_space, usable_cores
from seesaw.errors import ConfigError
from seesaw.families.spec import ModelSpec
from seesaw.layout.pairs import check_pair, layouts_for
from seesaw.layout.parallel import ParallelLayout
from seesaw.log import get_logger
from seesaw.plan.choice import LayoutChoice
from seesaw.plan.device_memory import DeviceSplit, Setting
from seesaw.scheduler import policies

logger = get_logger(__name__)


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
    """Replicas where the model fits one device, since they need not talk to each other; else as
    many stages as can be for prompts, and as wide a cut as can be for answers."""
    replicas = ParallelLayout(dp=num_devices)
    if num_devices == 1:
        return LayoutChoice(replicas, replicas, "the default")
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
    )
    if DeviceSplit.of(setting).fits:
        return LayoutChoice(replicas, replicas, "the model fits one device")
    options = layouts_for(num_devices, spec, dp=1)
    if not options:
        fewer = next(n for n in range(num_devices - 1, 0, -1) if layouts_for(n, spec, dp=1))
        raise ConfigError(
            f"num_devices={num_devices}: {spec.architecture} does not fit one device, and its "
            f"{spec.num_hidden_layers} layers and {spec.num_attention_heads} query heads cannot be "
            f"cut into {num_devices} parts. Use num_devices={fewer}."
        )
    prefill = max(options, key=lambda layout: layout.pp)
    decode = max(options, key=lambda layout: layout.tp)
    if config.policy != "auto" and not has_tier:
        reason = f"the model does not fit one device; policy {config.policy} runs one layout"
        return LayoutChoice(decode, decode, reason)
    return LayoutChoice(prefill, decode, "the model does not fit one device")
