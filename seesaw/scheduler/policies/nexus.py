"""Prompts and answers in two lanes of one device, which share its compute units by a cost model.

Nexus, arXiv 2507.06608 (the version titled "Proactive intra-GPU disaggregation"): two schedulers,
a prefill lane that takes the shortest prompt first with ageing and a decode lane that takes all in
order of arrival, and a controller that splits the device by its greedy search
(`plan/lane_split.py`) over a contention model (`plan/lane_costs.py`). A new split takes effect at
each lane's next step; neither waits for the other.

Where the paper is silent: a lane that has nothing to run leaves the whole device to the other;
prompts longer than the budget run in chunks, alone in their step; where blocks run out, the
youngest prompt under way yields and only then the youngest answer, or prompts that others keep
overtaking would hold the blocks which those others need to end; the split is looked at whenever
either lane has a step planned; what answers may be slowed down is measured by their step on the
whole device while prompts take bandwidth, which no split gives back. Age is told by arrival alone:
all scores grow alike with time, so their order does not depend on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from seesaw.errors import ConfigError
from seesaw.plan.lane_costs import Beside, LaneCosts
from seesaw.plan.lane_split import SplitRule, settled, split
from seesaw.scheduler.policies.checks import check_fraction, check_tokens
from seesaw.scheduler.policies.rows import kept_free, run
from seesaw.scheduler.request import Request, RequestStatus
from seesaw.scheduler.step import StepBuilder

PREFILL, DECODE = 0, 1
RULE = SplitRule()
"""With the paper's parameters."""


def _opt(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class NexusOptions:
    prefill_tokens: int = _opt(0, "most tokens of a step of prompts; 0 = the step's budget")
    age_weight: float = _opt(
        15.0, "prompt tokens that a second of waiting makes up for; 0 = the shortest first"
    )
    prefill_share: float = _opt(
        0.0, "share of the device for prompts while there are answers; 0 = by the cost model"
    )
    prefill_slowdown: float = _opt(
        RULE.prefill_slowdown, "times that prompts may take of what they would on the whole device"
    )
    decode_slowdown: float = _opt(
        RULE.decode_slowdown, "times that answers may take of what they would on the whole device"
    )
    kv_switch: float = _opt(
        RULE.kv_switch, "share of KV blocks held from which on answers are favoured"
    )
    hysteresis: float = _opt(
        RULE.hysteresis, "share of the device by which a new split must differ"
    )
    block_watermark: float = _opt(
        0.01, "fraction of KV blocks kept free of new requests, for running ones to grow"
    )

    def __post_init__(self) -> None:
        check_tokens("prefill_tokens", self.prefill_tokens, 0, "tokens, or 0 for no limit")
        check_fraction("block_watermark", self.block_watermark)
        for name in ("prefill_slowdown", "decode_slowdown"):
            if not _is_number(value := getattr(self, name)) or value < 1:
                raise ConfigError(f"{name}={value!r}: expected 1 or more, such as 1.2.")
        if not _is_number(self.age_weight) or self.age_weight < 0:
            raise ConfigError(
                f"age_weight={self.age_weight!r}: expected tokens per second, 0 or more."
            )
        for name in ("prefill_share", "kv_switch", "hysteresis"):
            if not _is_number(value := getattr(self, name)) or not 0 <= value <= 1:
                raise ConfigError(f"{name}={value!r}: expected a fraction from 0 to 1.")
        if self.prefill_share == 1:
            raise ConfigError("prefill_share=1: that leaves nothing for others. Give less.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _who_yields(running: list[Request]) -> Request:
    """The youngest prompt under way, or the youngest answer, which has no row yet: rows are given
    oldest first."""
    prompts = [request for request in running if not request.decodes]
    return (prompts or running)[-1]


class Nexus:
    Options = NexusOptions
    num_lanes = 2

    def __init__(self, options: NexusOptions) -> None:
        self._options = options
        self._rule = SplitRule(
            prefill_slowdown=options.prefill_slowdown,
            decode_slowdown=options.decode_slowdown,
            kv_switch=options.kv_switch,
            hysteresis=options.hysteresis,
        )
        self._costs: LaneCosts | None = None
        # Rows of each lane's latest step: tokens before them, their own, whether they draw.
        self._prompts: list[tuple[int, int, bool]] = []
        self._answers: list[tuple[int, int, bool]] = []
        self._units: int | None = None  # of the prefill lane, if both lanes had steps last

    def share_by(self, costs: LaneCosts) -> None:
        """What steps of either lane cost on a part of the device."""
        self._costs = costs

    def plan(self, step: StepBuilder) -> None:
        if step.lane == PREFILL:
            self._prefill(step)
        else:
            self._decode(step)
        if step.rows:
            step.take_share(self._share(step))

    # -- the two schedulers -----------------------------------------------------------------------

    def _prefill(self, step: StepBuilder) -> None:
        """The shortest whole prompts that fit the budget, one that does not fit alone in chunks."""
        if self._options.prefill_tokens:
            step.limit_tokens(self._options.prefill_tokens)
        # Else a prompt that yielded to an answer would take the blocks again before it has its one.
        answers = [request for request in step.running if request.decodes and request.num_left]
        growing = sum(request.num_computed >= request.table_room for request in answers)
        begun = [request for request in step.running if not request.decodes and request.num_left]
        may_admit = True
        for request in sorted([*begun, *step.waiting], key=self._score):
            waits = request.status is RequestStatus.WAITING
            if waits and not may_admit:
                continue
            left = request.num_tokens if waits else request.num_left
            if left > step.tokens_left and step.rows:
                return
            if waits:
                reserve = max(growing, kept_free(step, self._options.block_watermark))
                if not step.admit(request, reserve_blocks=reserve):
                    may_admit = False  # others that have blocks go on
                    continue
            step.schedule(request, left)

    def _score(self, request: Request) -> tuple[float, float]:
        """Tokens left, less those that its age makes up for; who came first where these are equal.
        `sorted` leaves requests of one time in their order."""
        left = request.num_tokens - request.num_computed
        return left + self._options.age_weight * request.arrival_s, request.arrival_s

    def _decode(self, step: StepBuilder) -> None:
        """A token for each that decodes, as far as blocks and the step's budget go."""
        run(step, [request for request in step.running if request.decodes], 1, _who_yields)

    # -- the controller ---------------------------------------------------------------------------

    def _share(self, step: StepBuilder) -> float:
        """Of the lane that has this step: all, where the other lane has nothing to run."""
        whole = step.config.share_units
        rows = [(row.token_start, row.num_tokens, row.samples) for row in step.rows]
        if step.lane == DECODE:
            self._answers = rows
            is_alone = not step.steps_in_flight[PREFILL]
        else:
            self._prompts = rows
            decoding = [
                (request.num_computed, 1, True)
                for request in step.running
                if request.decodes and request.num_left and request.last_step != step.step_id
            ]
            self._answers = decoding or self._answers
            is_alone = not decoding and not step.steps_in_flight[DECODE]
        if is_alone:
            self._units = None
            return 1.0
        num_blocks = step.config.num_blocks
        self._units = self._split((num_blocks - step.num_free_blocks) / num_blocks, whole)
        return (self._units if step.lane == PREFILL else whole - self._units) / whole

    def _split(self, kv_usage: float, whole: int) -> int:
        """Units of the prefill lane."""
        if self._options.prefill_share:
            return min(max(1, round(self._options.prefill_share * whole)), whole - 1)
        costs = self._costs
        assert costs is not None, "nobody has said what steps cost"
        prompts, answers = costs.work(self._prompts), costs.work(self._answers)

        def decode(units: int) -> float:
            # Prompts take bandwidth whatever the split, so that on all units, too.
            return costs.seconds(answers, units, Beside(prompts, max(1, whole - units)))

        wanted = split(
            self._rule, lambda units: costs.seconds(prompts, units), decode, whole, kv_usage
        )
        return settled(self._rule, wanted, self._units, whole)
