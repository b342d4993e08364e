"""How many lanes of steps an engine's device has, in how many parts they share it, and by what
costs: before weights are read."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from seesaw.config import EngineConfig
from seesaw.engine.layouts import figures
from seesaw.engine.threads import threads_of_rank
from seesaw.errors import ConfigError
from seesaw.families.spec import ModelSpec
from seesaw.log import get_logger
from seesaw.plan.choice import LayoutChoice
from seesaw.plan.lane_costs import LaneCosts, core_units, sm_units
from seesaw.scheduler import policies
from seesaw.scheduler.build import check_lanes

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LanePlan:
    """`units`: parts of the device that lanes share; 1 without lanes. `costs`: of steps on them,
    None where the policy needs none."""

    num_lanes: int = 1
    units: int = 1
    costs: LaneCosts | None = None


def plan_lanes(
    config: EngineConfig, spec: ModelSpec, dtype: str, layouts: LayoutChoice, device: torch.device,
    *, native: bool,
) -> LanePlan:  # fmt: skip
    """For the policy of `config`. Raises ConfigError where the layout or the device do not allow
    its lanes, or nobody knows what steps cost here."""
    policy = config.resolve_policy(layouts.prefill != layouts.decode)
    num_lanes = policies.num_lanes(policy)
    if num_lanes == 1:
        return LanePlan()
    if device.type == "cuda":
        units = sm_units(torch.cuda.get_device_properties(device).multi_processor_count)
    else:
        units = core_units(threads_of_rank(config, layouts.num_ranks, native))
    check_lanes(policy, layouts, units)
    check_one_device(policy, layouts)
    found = figures(device, 1, dtype)
    if not isinstance(found, str):
        costs = LaneCosts(spec, found.machines[0], dtype, units)
        logger.info(
            "two lanes share %d units by costs: %s; on parts of the device: %s",
            units, found.source, costs.scaling.source,
        )  # fmt: skip
        return LanePlan(num_lanes, units, costs)
    if not config.policy_options.get("prefill_share"):
        raise ConfigError(
            f"policy={policy!r} shares the device out by what steps cost, and {found}. Or give "
            "prefill_share, such as 0.5."
        )
    return LanePlan(num_lanes, units)


def check_one_device(policy: str, layouts: LayoutChoice) -> None:
    """Raises ConfigError where a policy of lanes is to have several: an engine has them in its own
    process."""
    if policies.num_lanes(policy) > 1 and layouts.num_ranks > 1:
        raise ConfigError(
            f"policy={policy!r} runs two lanes on one device of this process, got layout "
            f"{layouts.decode}. Give num_devices=1, or another policy."
        )
