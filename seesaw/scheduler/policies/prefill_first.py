"""Prefill first: while a new prompt can be admitted a step is whole prompts, else it decodes.

The default schedule of vLLM V0, and the baseline of Sarathi-Serve (OSDI 2024, sections 2.5 and 3):
first tokens come early, and all that decode stall while prompts are computed. New prompts are
admitted in order of arrival while a watermark of blocks stays free; when no block is free the
youngest running request yields and is computed again, first in line.

Our choices where vLLM V0 says nothing or cannot: a prompt that is longer than a step (which it
refuses) begins in a step of its own and goes on in chunks, in steps without decodes; while somebody
waits for blocks that steps in flight still use, nobody is admitted, or who yielded would take them
back; with several pipeline stages each step of decodes has an equal share of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from seesaw.scheduler.policies.checks import check_fraction
from seesaw.scheduler.policies.rows import kept_free, prompts_under_way, run_decodes
from seesaw.scheduler.step import StepBuilder


@dataclass(frozen=True, kw_only=True)
class PrefillFirstOptions:
    block_watermark: float = field(
        default=0.01,
        metadata={
            "help": "fraction of KV blocks kept free of new requests, for running ones to grow"
        },
    )

    def __post_init__(self) -> None:
        check_fraction("block_watermark", self.block_watermark)


class PrefillFirst:
    Options = PrefillFirstOptions

    def __init__(self, options: PrefillFirstOptions) -> None:
        self._watermark = options.block_watermark
        self._is_short = False  # somebody waits for blocks that are on their way back

    def plan(self, step: StepBuilder) -> None:
        assert step.config.tier is None, "policy 'prefill-first' has no use for a host tier"
        if self._is_short:
            self._decode(step)
        if step.tokens_left == step.budget and not self._is_short:
            for request in prompts_under_way(step):
                step.schedule(request, step.tokens_left)
            self._admit(step)
        if step.tokens_left == step.budget and not self._is_short:
            self._decode(step)

    def _decode(self, step: StepBuilder) -> None:
        self._is_short = run_decodes(step) and step.blocks_draining > 0

    def _admit(self, step: StepBuilder) -> None:
        while step.waiting and step.tokens_left:
            request = step.waiting[0]
            is_empty = step.tokens_left == step.budget
            if not is_empty and request.num_tokens > step.tokens_left:
                return
            if not step.admit(request, reserve_blocks=kept_free(step, self._watermark)):
                return
            step.schedule(request, step.tokens_left)
