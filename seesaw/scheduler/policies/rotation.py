"""Running requests whose KV takes turns in the decode pool: more of them run than the pool holds.

With `pp` stages each step has the rows of one group of requests, and a group comes again `pp` steps
later. Ranks run steps in order, so the blocks of a group are free on a rank as soon as its step is
done there, long before the last stage is. They are given to requests of a group to come, whose KV
is loaded from the host tier while the group between them is computed. With `q` tokens loaded in a
step, `2 q` of the pool turn over, the rest stay where they are, and `(pp - 2) q` more run than the
pool holds: nothing is gained with fewer than three stages.

Who ran last is parked, since its turn comes last; only what it has added to its KV is stored. Who
is next is fetched, at most one step's share ahead, so that groups come out equal by themselves.

Source of the idea: PipeMax (arXiv 2605.02189). That blocks change hands in the order of steps, and
not when all ranks have reported, is ours, as far as we know.
"""

from __future__ import annotations

from operator import attrgetter

from seesaw.scheduler.request import Request, RequestStatus
from seesaw.scheduler.step import StepBuilder

_by_turn = attrgetter("last_step")


def run_in_turns(step: StepBuilder, chunk: int, reserve: int) -> bool:
    """Rows for a share of those that run, those whose turn is first; True where blocks were short.

    Fetches those who are next, with `reserve` blocks left for others to grow into, and parks as
    many of this step's as it takes to fetch more in the next one.
    """
    turns = sorted((*step.running, *step.parked), key=_by_turn)
    prompts = [r for r in turns if _is_prompt(r)]
    answers = [r for r in turns if not _is_prompt(r)]
    share = -(-len(answers) // step.stages)
    ready = [
        r for r in answers if r.status is RequestStatus.RUNNING and len(r.tokens) == r.num_tokens
    ]
    free_stages = step.stages - step.num_decoding_in_flight
    count = min(share, -(-len(ready) // free_stages)) if free_stages > 0 else 0
    chosen = ready[:count]
    short = [r for r in (*prompts, *chosen) if step.tokens_left and not step.schedule(r, chunk)]
    drawn = {r.request_id for r in chosen}
    upcoming = [r for r in answers if r.request_id not in drawn][: 2 * max(1, share)]
    fetch(step, upcoming, reserve)
    lacking = _blocks_to_fetch(step, upcoming) - max(0, step.num_free_blocks - reserve)
    lacking = max(lacking, len(short))
    has_parked = False
    for request in (*reversed(chosen), *reversed(ready[count:])):
        if lacking <= 0:
            break
        if step.park(request):
            has_parked = True
            lacking -= len(request.blocks)
    if not has_parked:
        for request in short:
            _make_room(step, request, chunk)
    return bool(short)


def fetch(step: StepBuilder, requests: list[Request], reserve: int) -> None:
    """Load those of `requests` that are parked, in order, as far as a step may and blocks go."""
    left = step.rotation_tokens
    for request in requests:
        if request.status is not RequestStatus.PARKED:
            continue
        # One request may be more than a step should load, and must come all the same.
        if request.num_computed > left < step.rotation_tokens:
            return
        if not step.fetch(request, reserve_blocks=reserve if step.running else 0):
            return
        left -= request.num_computed


def join(step: StepBuilder, reserve: int) -> None:
    """Let stored requests run from the tier, as far as steps can load what the pool lacks."""
    if not step.stored:
        return
    config = step.config
    room = (config.num_blocks - reserve) * config.block_size
    room += max(0, config.stages("decode") - 2) * step.rotation_tokens
    room -= sum(request.num_tokens for request in (*step.running, *step.parked))
    while step.stored:
        request = step.stored[0]
        room -= request.num_tokens
        if (room < 0 and step.num_seats) or not step.join(request):
            return


def _is_prompt(request: Request) -> bool:
    """It still computes its prompt, or what it lost."""
    start = request.num_computed
    return start < request.num_prompt or request.num_tokens - start > 1


def _blocks_to_fetch(step: StepBuilder, requests: list[Request]) -> int:
    """That the next step could fetch for those of `requests` that are still parked."""
    size, left, blocks = step.config.block_size, step.rotation_tokens, 0
    for request in requests:
        if request.status is not RequestStatus.PARKED:
            continue
        if request.num_computed > left < step.rotation_tokens:
            break
        left -= request.num_computed
        blocks += -(-request.num_computed // size)
    return blocks


def _make_room(step: StepBuilder, request: Request, chunk: int) -> None:
    """Nobody could be parked: the youngest others without a row in this step are computed again,
    until the request has its row; where there is none, it is itself."""
    while request.status is RequestStatus.RUNNING and not step.schedule(request, chunk):
        if step.blocks_draining:
            return  # blocks are on their way back
        others = (r for r in reversed(step.running) if r.last_step != step.step_id)
        step.preempt(next((r for r in others if r is not request), request))
