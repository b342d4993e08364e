"""The scheduler of vLLM 0.5.4 with chunked prefill: the baseline of the paper's evaluation.

That release gives each pipeline stage a scheduler of its own ("virtual engine"): each has an equal
share of the KV blocks and of the requests (here also of max_num_seqs), has at most one step in
flight, and knows nothing of the others, so micro-batches are as unequal as chance makes them. With
one stage there is one, and no step is planned while another runs. Read in the release's source
(vllm/core/scheduler.py and vllm/engine/llm_engine.py of v0.5.4); written anew for this runtime's
`StepBuilder`.
"""

from __future__ import annotations

from dataclasses import dataclass

from seesaw.scheduler.output import ModelOutput, SchedulerOutput
from seesaw.scheduler.request import Request
from seesaw.scheduler.step import StepBuilder

WATERMARK = 0.01
"""Of each engine's blocks, kept free of new requests."""


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    pass


class VirtualEngines:
    Options = NoOptions

    def __init__(self, options: NoOptions) -> None:
        self._engine_of: dict[str, int] = {}
        self._in_flight: dict[int, int] = {}  # step -> engine
        self._next = 0

    def plan(self, step: StepBuilder) -> None:
        stages = step.stages
        busy = set(self._in_flight.values())
        for offset in range(stages):
            engine = (self._next + offset) % stages
            if engine not in busy and self._plan_engine(step, engine):
                self._in_flight[step.step_id] = engine
                self._next = (engine + 1) % stages
                return

    def observe(self, step: SchedulerOutput, done: ModelOutput) -> None:
        self._in_flight.pop(step.step_id, None)

    def _plan_engine(self, step: StepBuilder, engine: int) -> bool:
        """Rows of one engine's requests, answers first; True if there are any."""
        own = [r for r in step.running if self._engine_of.get(r.request_id) == engine]
        own.sort(key=lambda request: request.num_computed < request.num_prompt)
        size = step.config.num_blocks // step.stages
        left = size - sum(len(request.blocks) for request in own)
        block_size = step.config.block_size
        scheduled = False
        index = 0
        while index < len(own) and step.tokens_left:
            request = own[index]
            need = -(-min(request.num_tokens, request.num_computed + step.tokens_left)
                     // block_size) - len(request.blocks)  # fmt: skip
            if need > left:
                victim = own.pop()
                left += len(victim.blocks)
                del self._engine_of[victim.request_id]
                step.preempt(victim)
                continue
            left -= max(0, need)
            before = step.tokens_left
            step.schedule(request, step.config.max_num_batched_tokens)
            scheduled |= step.tokens_left < before
            index += 1
        return self._admit(step, engine, left, size, own) or scheduled

    def _admit(
        self, step: StepBuilder, engine: int, left: int, size: int, own: list[Request]
    ) -> bool:
        admitted = False
        most = step.config.max_num_seqs // step.stages
        while step.waiting and step.tokens_left and len(own) < most:
            request = step.waiting[0]
            need = -(-request.num_tokens // step.config.block_size)
            reserve = int(WATERMARK * size) if own else 0
            if need + reserve > left or not step.admit(request):
                break
            left -= need
            own.append(request)
            self._engine_of[request.request_id] = engine
            step.schedule(request, step.config.max_num_batched_tokens)
            admitted = True
        return admitted
