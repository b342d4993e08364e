"""What several policies do in the same way: rows of residents, blocks kept free for these, and the
size of prompt batches where they flow through pipeline stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import itemgetter

from seesaw.scheduler.request import Request
from seesaw.scheduler.step import StepBuilder


def run_residents(step: StepBuilder, chunk: int) -> bool:
    """Rows for running requests, oldest first; True where blocks were short.

    With several stages only a share of them decodes in one step, so that the others can be in the
    other stages.
    """
    return run(step, _share(step), chunk)


def run_decodes(step: StepBuilder) -> bool:
    """The same for those that decode alone. Before any other row."""
    return run(step, [request for request in _share(step) if request.decodes], 1)


def prompts_under_way(step: StepBuilder) -> list[Request]:
    """Running requests that do not decode yet, oldest first. They have blocks for all of their
    tokens since they were admitted, so that rows of theirs never lack any."""
    return [request for request in step.running if not request.decodes]


def run(
    step: StepBuilder,
    chosen: list[Request],
    chunk: int,
    who_yields: Callable[[list[Request]], Request] = itemgetter(-1),
) -> bool:
    """Rows of up to `chunk` tokens for `chosen`, in this order; True where blocks were short.

    Then `who_yields` of all that run, the youngest, goes to the tier if it has room, else to be
    computed again. It must have no row yet.
    """
    running = step.running
    schedule = step.schedule
    index, short = 0, False
    while index < len(chosen) and step.tokens_left:
        request = chosen[index]
        if schedule(request, chunk):
            index += 1
            continue
        short = True
        if step.blocks_draining:
            index += 1  # blocks are on their way back: sit this step out
            continue
        leaving = who_yields(running)
        if not step.store_back(leaving):
            step.preempt(leaving)
        if chosen is not running and leaving in chosen:
            chosen.remove(leaving)
    return short


def _share(step: StepBuilder) -> list[Request]:
    """All that still prefill, and of those that decode an equal share for each stage.

    As many groups as stages go round: when one comes back it is issued again, taking in who joined
    meanwhile or leaving out who makes it larger than an equal share. With one stage, all that run.
    """
    if step.stages == 1:
        return step.running
    num_decoding = num_ready = 0
    candidates: list[tuple[Request, bool]] = []  # and whether it decodes
    for request in step.running:
        start, num_tokens = request.num_computed, request.num_tokens
        if start < request.num_prompt or num_tokens - start > 1:
            candidates.append((request, False))
            continue
        num_decoding += 1
        if len(request.tokens) == num_tokens:
            num_ready += 1
            candidates.append((request, True))
    free_stages = step.stages - step.num_decoding_in_flight
    share = 0
    if free_stages > 0:
        share = min(-(-num_decoding // step.stages), -(-num_ready // free_stages))
    chosen = []
    for request, decodes in candidates:
        share -= decodes
        if not decodes or share >= 0:
            chosen.append(request)
    return chosen


def kept_free(step: StepBuilder, watermark: float) -> int:
    """Blocks that a new request must leave for running ones to grow, of which `watermark` is the
    share. With nobody running there is nobody to keep them for, and it may need them all."""
    return int(watermark * step.config.num_blocks) if step.running else 0


def balance_prompts(step: StepBuilder, prompts: Iterable[Request], decode_rows: int = 0) -> None:
    """Cut the step's budget so that the prompts at hand make batches of equal size.

    `prompts` have blocks and something left to run. To them come those that wait, as far as the
    blocks free now go. Uneven batches would leave stages idle behind the small ones; with one stage
    there is nothing to balance.
    """
    if step.stages == 1:
        return
    budget = step.budget
    enough = (step.stages + 1) * budget
    total = sum(request.num_left for request in prompts)
    blocks, tier_blocks = step.num_free_blocks, step.num_free_tier_blocks
    for request in step.waiting:
        blocks -= -(-request.num_tokens // step.config.block_size)
        if step.phase == "prefill":
            tier_blocks -= step.tier_blocks_for(request)
        if blocks < 0 or tier_blocks < 0 or total >= enough:
            break
        total += request.num_tokens
    if total:
        num_batches = -(-total // budget)
        step.limit_tokens(-(-total // num_batches) + decode_rows)
