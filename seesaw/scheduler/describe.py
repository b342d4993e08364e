"""What a scheduler holds, in lines for people: for the text that is written when an engine fails.

Reads the lists as they are, also halfway through a step; changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from seesaw.scheduler.output import SchedulerOutput
from seesaw.scheduler.request import Request, RequestStatus
from seesaw.scheduler.residency import Residency

MOST_REQUESTS = 20
"""Of each status that are listed one by one."""


def describe(residency: Residency, in_flight: Iterable[SchedulerOutput]) -> list[str]:
    """Steps in flight, blocks held, requests by status with what each of them holds."""
    lines = [f"step in flight: {_step(step)}" for step in in_flight]
    for phase, pool in residency.pools.items():
        used = pool.num_blocks - pool.num_free
        lines.append(f"{phase} pool: {used} of {pool.num_blocks} blocks held")
    if residency.tier is not None:
        tier = residency.tier
        lines.append(f"host tier: {tier.num_used} of {tier.num_blocks} blocks held")
    lines.append(f"copies of KV under way: {residency.num_transfers}")
    requests = list(residency.requests.values())
    for status in RequestStatus:
        own = [request for request in requests if request.status is status]
        if own:
            lines.append(f"{status.value}: {len(own)} requests")
            lines += [f"  {_request(request)}" for request in own[:MOST_REQUESTS]]
            if len(own) > MOST_REQUESTS:
                lines.append(f"  and {len(own) - MOST_REQUESTS} more")
    return lines


def _step(step: SchedulerOutput) -> str:
    parts = [f"{step.step_id} ({step.phase})", f"{len(step.rows)} rows"]
    parts += [f"{step.num_tokens} tokens"]
    parts += [f"lane {step.lane}"] * (step.lane > 0)
    parts += ["a change of layout"] * step.reshard
    for name in ("stores", "loads", "relays"):
        if moves := getattr(step, name):
            parts.append(f"{len(moves)} {name}")
    return ", ".join(parts)


def _request(request: Request) -> str:
    text = (
        f"{request.request_id}: {request.num_prompt} tokens of prompt, {request.num_tokens} in all,"
        f" {request.num_computed} computed; {len(request.blocks)} blocks,"
        f" {len(request.tier_blocks)} of the tier"
    )
    if request.layer_cursor:
        text += f"; {request.wave_tokens} tokens have run {request.layer_cursor} layers"
    if request.transfers:
        text += f"; copies {', '.join(map(str, sorted(request.transfers)))} under way"
    return text
