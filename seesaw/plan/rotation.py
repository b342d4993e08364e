"""Whether running requests should take turns in the decode pool, and how much a step may load.

Closed form over the costs of a step, in tokens of KV. The mechanism is `scheduler/policies/
rotation.py`: of a pool of `C` tokens, `2 q` turn over where a step loads `q`, the rest stay, and
`C + (pp - 2) q` run. Loads must hide behind the step that they run beside: so `q` is bounded by the
host link and the seconds of a step, which grow with its rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from seesaw.config import RunningTier
from seesaw.errors import ConfigError
from seesaw.families.spec import ModelSpec
from seesaw.layout.kv import owned_heads
from seesaw.layout.parallel import ParallelLayout
from seesaw.layout.ranges import rank_ranges
from seesaw.plan.demand import Demand
from seesaw.plan.memory import MemoryPlan
from seesaw.plan.step_times import Steps

LEAST_GAIN = 1.15
"""In decode tokens per second, by the cost model, from which `auto` turns it on. That foresees more
than the simulator finds, by a tenth where little is gained (bench/running_tier.py)."""

MOST_TURNING = 0.7
"""Of the pool, that may turn over. Not all of it: where nobody stays, a group that comes out small
once leaves every later one small (simulated)."""

TRIED = 14
"""Sizes of the part that turns over, at most."""

TIER_SHARE = 0.5
"""Of the tier, that running requests may take: the rest is for prompts that wait."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """`tokens` that a step may load. `batch`: requests that run; `still`: as many as the pool
    holds; `gain`: in decode throughput, over those."""

    tokens: int
    batch: float
    still: float
    gain: float

    def describe(self) -> str:
        return (
            f"running requests in the tier: {self.batch:.0f} run where the decode pool holds "
            f"{self.still:.0f}, a step loads {self.tokens} tokens of their KV; {self.gain:.2f}x of "
            "the decode throughput foreseen"
        )


def can_rotate(spec: ModelSpec, decode: ParallelLayout) -> bool:
    """Blocks can be given on before all stages are done: there are stages enough, and no rank loads
    what another one stores. `decode` of one replica."""
    return decode.pp > 2 and all(
        owned_heads(decode, spec, rank) == rank_ranges(decode, spec, rank).kv_heads
        for rank in range(decode.num_ranks)
    )


def check_wanted(
    wanted: RunningTier, spec: ModelSpec, decode: ParallelLayout, *, has_tier: bool
) -> None:
    """Raises ConfigError where it is asked for and cannot be. `decode` of one replica."""
    if wanted != "on" or (has_tier and can_rotate(spec, decode)):
        return
    why = "its ranks share KV heads" if decode.pp > 2 else f"it has {decode.pp} stages"
    if not has_tier:
        why = "the policy keeps no host tier"
    raise ConfigError(
        f"running_tier='on' with decode layout {decode}: {why}. Running requests take turns with "
        "policy='seesaw' or 'seesaw-cost', three decode stages or more, and no more ranks in a "
        "stage than KV heads. Use running_tier='auto', or another layout."
    )


def most_tokens(memory: MemoryPlan) -> int:
    """That a step may load, whatever the link gives."""
    return int(MOST_TURNING / 2 * memory.num_blocks * memory.block_size)


def plan_rotation(
    wanted: RunningTier, steps: Steps, memory: MemoryPlan, demand: Demand, max_num_seqs: int
) -> Rotation | None:
    """Of one replica in its decode layout, for its share of the requests. None where it is not
    wanted, not possible, or does not gain."""
    costs = steps.costs
    if wanted == "off" or not memory.tier_blocks or not can_rotate(costs.spec, costs.layout):
        return None
    pool = memory.num_blocks * memory.block_size
    held = demand.context + memory.block_size / 2
    tier = TIER_SHARE * memory.tier_blocks * memory.tier_block_size
    most = min(max_num_seqs, demand.num_requests, tier / held)
    still = min(most, max(1.0, pool / held))
    base = _rate(steps, memory, held, still, 0.0)
    found: list[Rotation] = []
    # A step loads whole requests: where one is too much for the link, so is less.
    largest = max(1, round(MOST_TURNING / 2 * pool / held))
    for number in range(1, largest + 1, -(-largest // TRIED)):
        tokens = number * held
        batch = min(most, (pool + (steps.pp - 2) * tokens) / held)
        rate = _rate(steps, memory, held, batch, tokens)
        found.append(Rotation(max(1, int(tokens)), batch, still, rate / base))
        if batch == most:
            break  # more would come round sooner than there is use for
    best = max(found, key=lambda one: one.gain, default=None)
    if best is None or (wanted == "auto" and best.gain < LEAST_GAIN):
        return None
    return best


def _rate(steps: Steps, memory: MemoryPlan, held: float, batch: float, tokens: float) -> float:
    """Rows per second of `batch` requests of `held` tokens each, with `tokens` loaded in a step."""
    groups = steps.groups(batch)
    _, slowest_s, through_s = steps.step(0, batch / groups)
    token_bytes = memory.block_bytes / memory.block_size
    costs = steps.costs
    ranks = range(costs.layout.num_ranks)
    load_s = tokens * token_bytes / min(costs.load_bytes_per_s(rank) for rank in ranks)
    # Of each that is parked, the tier block in which its new tokens are.
    stored = tokens / held * memory.tier_block_size * token_bytes
    store_s = stored / min(costs.store_bytes_per_s(rank) for rank in ranks)
    return batch / groups / max(slowest_s, through_s / groups, load_s, store_s)
