"""What an engine may load of running requests in a step: as the planner says for this machine,
where it is known."""

from __future__ import annotations

import math

import torch

from seesaw.config import EngineConfig
from seesaw.engine.layouts import expected_job, measured_figures
from seesaw.families.spec import ModelSpec
from seesaw.log import get_logger
from seesaw.plan.choice import LayoutChoice
from seesaw.plan.cost_model import CostModel
from seesaw.plan.demand import Demand
from seesaw.plan.memory import MemoryPlan
from seesaw.plan.rotation import can_rotate, check_wanted, most_tokens, plan_rotation
from seesaw.plan.search import MOST_DRAWN
from seesaw.plan.step_times import Steps
from seesaw.plan.work import WorkCounter

logger = get_logger(__name__)


def rotation_tokens(
    config: EngineConfig, spec: ModelSpec, dtype: str, layouts: LayoutChoice, memory: MemoryPlan,
    device: torch.device,
) -> int:  # fmt: skip
    """0 = residents stay in the decode pool. Raises ConfigError where it is asked for and the
    layout does not allow it."""
    decode = layouts.decode.replica
    check_wanted(config.running_tier, spec, decode, has_tier=memory.tier_blocks > 0)
    if config.running_tier == "off" or not memory.tier_blocks or not can_rotate(spec, decode):
        return 0
    found = measured_figures(device, layouts.num_ranks, dtype)
    if isinstance(found, str):
        tokens = most_tokens(memory) if config.running_tier == "on" else 0
        logger.info("running requests in the tier: %d tokens a step; %s", tokens, found)
        return tokens
    costs = CostModel(spec, found.machines[0].part(0, decode.num_ranks), decode, dtype)
    workload, count = expected_job(config, spec)
    lengths = workload.draw(min(count, MOST_DRAWN), seed=0)
    demand = Demand.of(lengths, math.ceil(count / layouts.dp))
    steps = Steps(costs, WorkCounter(spec), demand, config.step_tokens)
    plan = plan_rotation(config.running_tier, steps, memory, demand, config.max_num_seqs)
    if plan is None:
        return 0
    logger.info("%s (%s)", plan.describe(), found.source)
    return plan.tokens
