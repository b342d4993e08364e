"""Layered prefill: prompts run a group of layers in each step, answers all of them.

Chunked prefill lets a prompt cross every layer once per chunk, and each time a layer's experts are
read again. Here a prompt crosses each layer once: a wave of prompts runs one group of contiguous
layers a step beside the decodes, and its hidden states wait in between (Layered Prefill, arXiv
2510.08055, section 4: one wave at a time, its members frozen, a group for each 512 of its tokens,
longer prompts in parts of 8192). What a step costs its decodes is that of a chunk; the experts
that prompts touch are read once instead of once per chunk. A dense model gains nothing by it,
since its decodes read all weights in every step as it is; `auto` never chooses it, and whoever
asks for it on one is told.

Where the paper is silent: while nothing decodes all groups run at once. When blocks are short the
youngest yields, be it a member of the wave, whose hidden states are dropped. A wave takes what the
step's budget leaves beside its decodes. With pipeline stages a group may lie across two of them:
it runs its layers on each.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from seesaw.layout.ranges import split
from seesaw.scheduler.policies.checks import check_fraction, check_tokens
from seesaw.scheduler.policies.rows import kept_free, prompts_under_way, run_decodes
from seesaw.scheduler.request import Request
from seesaw.scheduler.step import StepBuilder


@dataclass(frozen=True, kw_only=True)
class LayeredPrefillOptions:
    group_tokens: int = field(
        default=512,
        metadata={"help": "prompt tokens of a wave for which it has another group of layers"},
    )
    max_groups: int = field(
        default=16, metadata={"help": "most groups of layers; never more than layers"}
    )
    wave_tokens: int = field(
        default=8192,
        metadata={
            "help": "most prompt tokens of a wave, as far as max_num_batched_tokens has room for "
            "them beside the answers"
        },
    )
    block_watermark: float = field(
        default=0.01,
        metadata={
            "help": "fraction of KV blocks kept free of new requests, for running ones to grow"
        },
    )

    def __post_init__(self) -> None:
        for name in ("group_tokens", "max_groups", "wave_tokens"):
            check_tokens(name, getattr(self, name), 1, "an integer from 1")
        check_fraction("block_watermark", self.block_watermark)


class LayeredPrefill:
    Options = LayeredPrefillOptions
    splits_layers = True
    for_experts = True

    def __init__(self, options: LayeredPrefillOptions) -> None:
        self._options = options
        self._stops: list[int] = []
        """Where the groups of layers end that the wave has not run yet."""
        self._splits = False  # somebody decodes, whom a whole prompt would hold up

    def plan(self, step: StepBuilder) -> None:
        assert step.config.tier is None, "policy 'layered-prefill' has no use for a host tier"
        short = run_decodes(step)
        prompts = prompts_under_way(step)
        # With a row of one token in this step or those that follow.
        decoding = sum(request.decodes and request.num_left > 0 for request in step.running)
        self._splits = decoding > 0 or step.num_decode_rows > 0
        wave = [request for request in prompts if request.layer_cursor]
        if wave:
            self._run_group(step, [(request, request.wave_tokens) for request in wave])
        elif not step.num_saved_tokens:
            # Those of members that yielded are dropped when the workers hear of it, first.
            self._begin(step, prompts, step.budget - decoding, admits=not short)

    def _begin(self, step: StepBuilder, prompts: list[Request], most: int, *, admits: bool) -> None:
        """A wave of up to `most` tokens: prompts that have begun, then those that wait, first come
        first served."""
        room = min(most, self._options.wave_tokens, step.tokens_left)
        members: list[tuple[Request, int]] = []
        for request in prompts:
            if room > 0:
                members.append((request, min(request.num_left, room)))
                room -= members[-1][1]
        while admits and step.waiting and room > 0:
            request = step.waiting[0]
            if not step.admit(
                request, reserve_blocks=kept_free(step, self._options.block_watermark)
            ):
                break
            members.append((request, min(request.num_left, room)))
            room -= members[-1][1]
        if not members:
            return
        self._stops = self._groups(step.config.num_layers, sum(count for _, count in members))
        self._run_group(step, members)

    def _groups(self, num_layers: int, num_tokens: int) -> list[int]:
        """Where groups of layers for a wave of so many tokens end, as even as can be, larger ones
        first."""
        options = self._options
        wanted = -(-num_tokens // options.group_tokens)
        count = min(wanted, options.max_groups, num_layers)
        return [split(num_layers, count, group).stop for group in range(count)]

    def _run_group(self, step: StepBuilder, members: list[tuple[Request, int]]) -> None:
        """The wave's next group; all that are left where there is no decode to wait for it."""
        start, stop = members[0][0].layer_cursor, self._stops.pop(0)
        if not self._splits:
            stop = step.config.num_layers
        for request, count in members:
            step.schedule(request, count, (start, stop))
            assert request.last_step == step.step_id, f"{request} was left behind by its wave"
