"""Continuous batching with chunked prefill: one mixed batch per step under a token budget.

Running requests come first, oldest first, decodes and unfinished prompts alike; new ones fill what
is left of the budget, in order of arrival. When no block is free the youngest running request
yields and is computed again later. With several pipeline stages each step takes a share of those
that decode. This is the default schedule of vLLM V1; chunked prefill is due
to Sarathi-Serve (OSDI 2024), section 4.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from seesaw.scheduler.policies.checks import check_fraction, check_tokens
from seesaw.scheduler.policies.rows import balance_prompts, kept_free, run_residents
from seesaw.scheduler.step import StepBuilder


@dataclass(frozen=True, kw_only=True)
class ContinuousOptions:
    max_prefill_chunk: int = field(
        default=0,
        metadata={"help": "most prompt tokens of one request per step; 0 = the step's budget"},
    )
    block_watermark: float = field(
        default=0.01,
        metadata={
            "help": "fraction of KV blocks kept free of new requests, for running ones to grow"
        },
    )

    def __post_init__(self) -> None:
        check_tokens("max_prefill_chunk", self.max_prefill_chunk, 0, "tokens, or 0 for no limit")
        check_fraction("block_watermark", self.block_watermark)


class Continuous:
    Options = ContinuousOptions

    def __init__(self, options: ContinuousOptions) -> None:
        self._watermark = options.block_watermark
        self._max_chunk = options.max_prefill_chunk

    def plan(self, step: StepBuilder) -> None:
        assert step.config.tier is None, "policy 'continuous' has no use for a host tier"
        chunk = self._max_chunk or step.config.max_num_batched_tokens
        if step.stages > 1:
            prompts = [r for r in step.running if r.num_computed < r.num_prompt]
            balance_prompts(step, prompts, decode_rows=len(step.running) - len(prompts))
        short = run_residents(step, chunk)
        if not short:
            self._admit(step, chunk)

    def _admit(self, step: StepBuilder, chunk: int) -> None:
        while step.waiting and step.tokens_left:
            request = step.waiting[0]
            if not step.admit(request, reserve_blocks=kept_free(step, self._watermark)):
                return
            step.schedule(request, chunk)
