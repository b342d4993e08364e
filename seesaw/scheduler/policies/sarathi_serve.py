"""Sarathi-Serve: stall-free batches under a budget of tokens.

The paper (OSDI 2024, arXiv 2403.02310), section 4 and algorithm 3, in the order of its text and
code: every decode has a row in every step; what is left of the budget goes to prompts under way,
oldest first, then to new ones in order of arrival, of which the first that does not fit ends the
step. A watermark of blocks stays free of new requests. Where no block is free the youngest running
request yields and is computed again, first in line.

Decodes count in the budget and are never dropped. With one stage they cannot exceed it, since each
prompt that ends takes a token of it; with several they can, and prompts wait until some have ended,
as in the authors' code. What does bound them is `max_num_batched_tokens`, all that a step has room
for.

`--token-budget auto` is the paper's section 4.3, by the cost model where the authors profile
(`plan/token_budget.py`), for requests that have their KV to themselves.

`--batches` has the paper's two ablations (table 4): `hybrid-only` cuts prompts only where the step
is full (`max_num_batched_tokens`), as the authors' code does, and `chunk-only` gives turns to
chunks and to decodes, as their "simple chunking" does.

Our choices where the paper is silent: while somebody waits for blocks that steps in flight still
use, nobody is admitted; with several pipeline stages each step has an equal share of the decodes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from seesaw.errors import ConfigError
from seesaw.plan.token_budget import token_budget
from seesaw.scheduler.config import SchedulerConfig
from seesaw.scheduler.policies.checks import check_fraction, check_tokens
from seesaw.scheduler.policies.rows import kept_free, prompts_under_way, run_decodes
from seesaw.scheduler.step import StepBuilder

if TYPE_CHECKING:
    from seesaw.plan.cost_model import CostModel

Batches = Literal["stall-free", "hybrid-only", "chunk-only"]


@dataclass(frozen=True, kw_only=True)
class SarathiServeOptions:
    token_budget: int | Literal["auto"] = field(
        default=512,
        metadata={
            "help": "tokens of a step, of prompts and answers, at most max_num_batched_tokens; "
            "auto = as many as keep tbt_bound_s, by what steps cost on this machine",
            "of_step": True,
        },
    )
    tbt_bound_s: float | None = field(
        default=None,
        metadata={
            "help": "with --token-budget auto: seconds that may pass between two tokens of an "
            "answer"
        },
    )
    tile: int = field(
        default=128,
        metadata={"help": "with --token-budget auto: the budget is a multiple of so many tokens"},
    )
    block_watermark: float = field(
        default=0.01,
        metadata={
            "help": "fraction of KV blocks kept free of new requests, for running ones to grow"
        },
    )
    batches: Batches = field(
        default="stall-free",
        metadata={
            "help": "stall-free = decodes and, within the budget, chunks of prompts; hybrid-only = "
            "decodes and whole prompts; chunk-only = decodes and chunks in turns"
        },
    )

    def __post_init__(self) -> None:
        if self.token_budget != "auto":
            check_tokens("token_budget", self.token_budget, 1, "tokens, at least 1, or auto")
        check_tokens("tile", self.tile, 1, "tokens, at least 1")
        check_fraction("block_watermark", self.block_watermark)
        if self.batches not in get_args(Batches):
            known = ", ".join(get_args(Batches))
            raise ConfigError(f"batches={self.batches!r}: expected one of {known}.")
        self._check_bound()

    def _check_bound(self) -> None:
        bound, is_auto = self.tbt_bound_s, self.token_budget == "auto"
        is_number = isinstance(bound, int | float) and not isinstance(bound, bool)
        if bound is not None and not (is_number and 0 < bound < float("inf")):
            raise ConfigError(f"tbt_bound_s={bound!r}: expected seconds above 0.")
        if is_auto and bound is None:
            raise ConfigError(
                "token_budget='auto' needs a bound to keep. Give tbt_bound_s, the seconds that may "
                "pass between two tokens, such as 0.1."
            )
        if not is_auto and bound is not None:
            raise ConfigError(
                f"tbt_bound_s={bound}: with token_budget={self.token_budget} nothing is bound by "
                "it. Leave it out, or use token_budget='auto'."
            )
        if is_auto and self.batches != "stall-free":
            raise ConfigError(
                f"batches={self.batches!r}: token_budget='auto' foresees steps of decodes beside "
                "chunks. Use batches='stall-free', or give a number of tokens."
            )


class SarathiServe:
    Options = SarathiServeOptions

    def __init__(self, options: SarathiServeOptions) -> None:
        self._options = options
        self._watermark = options.block_watermark
        self._budget = options.token_budget
        self._is_short = False  # somebody waits for blocks that are on their way back
        self._decodes_next = False  # whose turn it is, where they take turns

    def use_costs(self, costs: CostModel | str, config: SchedulerConfig) -> None:
        """Settles `token_budget="auto"`. Raises ConfigError where it cannot be."""
        options = self._options
        if options.token_budget != "auto":
            return
        assert options.tbt_bound_s is not None, "options are checked"
        if isinstance(costs, str):
            raise ConfigError(
                f"token_budget='auto' follows from what steps cost on this machine: {costs}. Or "
                "give a number of tokens, such as token_budget=512."
            )
        self._budget = token_budget(
            costs,
            bound_s=options.tbt_bound_s,
            tile=options.tile,
            most=config.max_num_batched_tokens,
            decodes=min(config.max_num_seqs, config.max_num_batched_tokens, config.num_blocks),
            context=config.max_model_len,
            kv_tokens=config.num_blocks * config.block_size,
        )

    def plan(self, step: StepBuilder) -> None:
        assert step.config.tier is None, "policy 'sarathi-serve' has no use for a host tier"
        assert self._budget != "auto", "nobody said what steps cost: call use_costs first"
        if self._options.batches == "chunk-only":
            self._take_turns(step, self._budget)
            return
        self._decode(step)
        budget = step.budget if self._options.batches == "hybrid-only" else self._budget
        self._prefill(step, budget - (step.budget - step.tokens_left))

    def _take_turns(self, step: StepBuilder, budget: int) -> None:
        """A step of one kind, of the other one where there is nothing to do."""
        decodes_first = self._decodes_next or self._is_short
        for decodes in (decodes_first, not decodes_first):
            if decodes:
                self._decode(step)
            else:
                self._prefill(step, budget)
            if step.tokens_left < step.budget:
                self._decodes_next = not decodes
                return

    def _decode(self, step: StepBuilder) -> None:
        self._is_short = run_decodes(step) and step.blocks_draining > 0

    def _prefill(self, step: StepBuilder, room: int) -> None:
        """Up to `room` tokens of prompts."""
        unused = max(0, step.tokens_left - room)
        for request in prompts_under_way(step):
            if step.tokens_left <= unused:
                return
            step.schedule(request, step.tokens_left - unused)
        while step.waiting and step.tokens_left > unused and not self._is_short:
            request = step.waiting[0]
            if not step.admit(request, reserve_blocks=kept_free(step, self._watermark)):
                return
            step.schedule(request, step.tokens_left - unused)
