"""A small scheduler and one-line ways to drive it, for tests that go case by case."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from seesaw.sampling_params import SamplingParams
from seesaw.scheduler import policies
from seesaw.scheduler.output import Load, ModelOutput, SchedulerOutput, Store, TransferDone
from seesaw.scheduler.request import Request
from seesaw.scheduler.scheduler import Scheduler, SchedulerConfig, TierConfig, Update

EOS = 0
CONFIG: dict[str, Any] = {
    "num_blocks": 16, "block_size": 4, "num_layers": 2, "max_model_len": 64, "max_num_seqs": 8,
    "max_num_batched_tokens": 32, "debug": True,
}  # fmt: skip


def make_scheduler(
    options: dict[str, Any] | None = None, *, policy: str = "continuous", **overrides: Any
) -> Scheduler:
    config = SchedulerConfig(**(CONFIG | overrides))
    return Scheduler(config, policies.make(policy, options or {}))


def make_tiered(
    options: dict[str, Any] | None = None,
    *,
    prefill_blocks: int = 16,
    tier_blocks: int = 16,
    tier_block_size: int = 4,
    stages: tuple[int, int] = (1, 1),
    **overrides: Any,
) -> Scheduler:
    """Policy `seesaw`, without a tail unless asked for; `stages` of prefill and of decode."""
    tier = TierConfig(
        prefill_blocks=prefill_blocks,
        tier_blocks=tier_blocks,
        tier_block_size=tier_block_size,
        prefill_stages=stages[0],
        decode_stages=stages[1],
    )
    config = SchedulerConfig(**(CONFIG | overrides), tier=tier)
    return Scheduler(config, policies.make("seesaw", {"tail": False} | (options or {})))


def transferred(scheduler: Scheduler, *transfers: Store | Load) -> None:
    for transfer in transfers:
        scheduler.transferred(TransferDone(transfer.transfer_id))


def add(scheduler: Scheduler, request_id: str, prompt: Sequence[int], **sampling: Any) -> Request:
    params = SamplingParams(**sampling)
    scheduler.validate(len(prompt), params)
    request = Request(
        request_id,
        prompt,
        params,
        seed=7,
        eos_token_ids=(EOS,),
        max_model_len=scheduler.config.max_model_len,
    )
    scheduler.add(request)
    return request


def step_of(scheduler: Scheduler) -> SchedulerOutput:
    step = scheduler.schedule()
    assert step is not None
    return step


def rows_of(step: SchedulerOutput) -> list[tuple[str, int, int, bool]]:
    return [(r.request_id, r.token_start, r.num_tokens, r.samples) for r in step.rows]


def update(scheduler: Scheduler, step: SchedulerOutput, *tokens: int) -> Update:
    return scheduler.update(ModelOutput(step.step_id, list(tokens)))


def run_step(scheduler: Scheduler, token: int = 5) -> SchedulerOutput:
    """Plan the next step and take in what it drew."""
    step = step_of(scheduler)
    update(scheduler, step, *[token for row in step.rows if row.samples])
    return step


def run_all(scheduler: Scheduler) -> list[SchedulerOutput]:
    """One step after the other until all requests have ended."""
    steps = []
    while scheduler.num_unfinished:
        steps.append(run_step(scheduler))
        assert len(steps) < 10_000, "no end"
    return steps


def sizes_of(step: SchedulerOutput) -> dict[str, int]:
    """Tokens of each row."""
    return {row.request_id: row.num_tokens for row in step.rows}


def ids(requests: Sequence[Request]) -> list[str]:
    return [request.request_id for request in requests]


def prompt_of(num_tokens: int, first: int = 100) -> list[int]:
    return list(range(first, first + num_tokens))


def ids_of_rows(step: SchedulerOutput) -> list[str]:
    return [row.request_id for row in step.rows]


def two_in_a_full_pool(**overrides: Any) -> tuple[Scheduler, Request, Request]:
    """Both run and hold all four blocks; the next step needs a fifth."""
    scheduler = make_scheduler(num_blocks=4, **overrides)
    old = add(scheduler, "old", prompt_of(8), max_tokens=8)
    young = add(scheduler, "young", prompt_of(7, 200), max_tokens=8)
    update(scheduler, step_of(scheduler), 5, 6)
    return scheduler, old, young


def assert_all_free(scheduler: Scheduler) -> None:
    scheduler.check()
    assert scheduler.kv_usage == scheduler.prefill_kv_usage == 0
    assert (scheduler.num_tier_blocks_used, scheduler.num_transfers) == (0, 0)
    assert (scheduler.num_unfinished, scheduler.num_running, scheduler.num_waiting) == (0, 0, 0)
