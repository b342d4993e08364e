"""Rules that one policy keeps beside those of all: which rows a step of it may have, and must have.

Judged from outside as in `rules`, by what the workers hold before they run the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from seesaw.scheduler.output import Row, SchedulerOutput

if TYPE_CHECKING:
    from tests.scheduler.rules import Rules


class PolicyRules(Protocol):
    def check(self, step: SchedulerOutput) -> None: ...


class _OneLayout:
    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.options = rules.trace.options
        self.config = rules.trace.config

    def split(self, rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
        """Rows that decode, and those of prompts."""
        decodes = [row for row in rows if self._decodes(row.request_id)]
        return decodes, [row for row in rows if row not in decodes]

    def _decodes(self, request_id: str) -> bool:
        """It has blocks, and one token is left to run: the newest of its answer. Of one that is
        computed again, too."""
        known = self.rules.worker.requests.get(request_id)
        if known is None or known.pool is None or self.rules.has_yielded(request_id):
            return False
        if known.saved is not None:  # it has run some of the layers
            return False
        return known.computed >= len(known.new.prompt_token_ids) and known.num_left <= 1

    def ready(self) -> set[str]:
        """Requests that decode and could have a row: their blocks have room for one more position.
        With several stages who decodes when is another rule's business."""
        if self.config.num_stages > 1:
            return set()
        return {
            request_id
            for request_id, known in self.rules.worker.requests.items()
            if self._is_resident(request_id)
            and self._decodes(request_id)
            and known.num_left == 1
            and len(known.tokens) < self.rules.most(request_id)
            and known.computed < len(known.blocks) * self.config.block_size
        }

    def under_way(self) -> set[str]:
        """Requests whose prompt is computed in part."""
        return {
            request_id
            for request_id, known in self.rules.worker.requests.items()
            if self._is_resident(request_id) and known.num_left and not self._decodes(request_id)
        }

    def _is_resident(self, request_id: str) -> bool:
        known = self.rules.worker.requests[request_id]
        is_gone = self.rules.has_yielded(request_id) or not self.rules.is_alive(request_id)
        return known.pool == "decode" and not is_gone

    def check_none_stalls(self, decodes: Sequence[Row]) -> None:
        """All that could decode do, as far as the step's own budget goes."""
        stalled = self.ready() - {row.request_id for row in decodes}
        self.rules.seen["ready decodes"] += len(decodes)
        if len(decodes) < self.config.max_num_batched_tokens:
            assert not stalled, f"{stalled} could have decoded"


class PrefillFirstRules(_OneLayout):
    def check(self, step: SchedulerOutput) -> None:
        decodes, prompts = self.split(step.rows)
        assert not (decodes and prompts), "prompts beside decodes"
        assert not (decodes and self.under_way()), f"decodes while {self.under_way()} is under way"
        for row in prompts:
            if not row.samples:
                length = len(self.rules.requests[int(row.request_id)].tokens)
                self.rules.seen["cut prompts"] += 1
                assert length > self.config.max_num_batched_tokens, f"{row} cuts a prompt that fits"


class LayeredPrefillRules(_OneLayout):
    def __init__(self, rules: Rules) -> None:
        super().__init__(rules)
        self._wave: set[str] = set()  # who has run some of the layers

    def check(self, step: SchedulerOutput) -> None:
        decodes, prompts = self.split(step.rows)
        self.check_none_stalls(decodes)
        members = {row.request_id for row in prompts}
        left = {
            one
            for one in self._wave
            if self.rules.is_alive(one) and not self.rules.has_yielded(one)
        }
        assert not left or members == left, f"{members} run, {left} are between layers"
        if not prompts:
            self._wave = left
            return
        groups = {(row.layer_start, row.layer_stop) for row in prompts}
        assert len(groups) == 1, f"one wave runs layers {groups}"
        assert sum(row.num_tokens for row in prompts) <= self.options["wave_tokens"]
        (start, stop), num_layers = groups.pop(), self.config.num_layers
        self._wave = members if stop < num_layers else set()
        self.rules.seen["groups of layers"] += start > 0
        if not any(map(self._is_resident_decode, self.rules.worker.requests)):
            assert stop == num_layers, "layers wait though nobody decodes"

    def _is_resident_decode(self, request_id: str) -> bool:
        return self._is_resident(request_id) and self._decodes(request_id)


class NexusRules(_OneLayout):
    def check(self, step: SchedulerOutput) -> None:
        decodes, prompts = self.split(step.rows)
        if step.lane == 1:
            assert not prompts, f"{prompts} in the lane of answers"
            self.rules.seen["answers"] += len(decodes)
        else:
            drawing = [row for row in step.rows if self.rules.is_decode(row)]
            assert not drawing, f"{drawing} in the lane of prompts"
            most = self.options["prefill_tokens"]
            assert not most or step.num_tokens <= most, f"{step.num_tokens} tokens of prompts"
        share, whole = step.batches[0].compute_share, self.config.share_units
        self.rules.seen["parts of the device"] += share < 1
        assert share == 1 or 1 <= round(share * whole, 6) <= whole - 1, f"a share of {share}"


class SarathiRules(_OneLayout):
    def check(self, step: SchedulerOutput) -> None:
        decodes, prompts = self.split(step.rows)
        self.check_none_stalls(decodes)
        assert len(prompts) <= 1, f"two chunks in a step: {prompts}"
        others = self.under_way() - {row.request_id for row in prompts}
        assert not (prompts and others), f"{prompts} beside {others}"
        assert not any(one.num_preemptions for one in self.rules.requests.values()), "one yielded"
        if not prompts or prompts[0].samples:
            return
        tile, budget = self.options["tile"], self.config.max_num_batched_tokens
        width = self.options["chunk"]
        while width <= len(decodes):
            width += tile
        if width > budget:
            width = budget - budget % tile if budget >= tile else budget
        self.rules.seen["full chunks"] += 1
        num_tokens = len(decodes) + prompts[0].num_tokens
        assert num_tokens == width, f"{num_tokens} tokens, {width} would be full"


class SarathiServeRules(_OneLayout):
    def __init__(self, rules: Rules) -> None:
        super().__init__(rules)
        self._before: str | None = None  # what the step before was of, where they take turns

    def check(self, step: SchedulerOutput) -> None:
        decodes, prompts = self.split(step.rows)
        budget, batches = self.options["token_budget"], self.options["batches"]
        num_prompt_tokens = sum(row.num_tokens for row in prompts)
        if batches == "chunk-only":
            assert num_prompt_tokens <= budget
            self._check_turn(decodes, prompts)
            return
        self.check_none_stalls(decodes)
        if batches == "stall-free":
            assert num_prompt_tokens <= max(0, budget - len(decodes)), "over the token budget"
            if self.config.num_stages == 1:
                assert len(decodes) <= budget, "more decodes than the budget let begin"
            self.rules.seen["hybrid"] += bool(decodes and prompts)

    def _check_turn(self, decodes: Sequence[Row], prompts: Sequence[Row]) -> None:
        assert not (decodes and prompts), "prompts beside decodes"
        kind = "decodes" if decodes else "prompts"
        if decodes:
            self.check_none_stalls(decodes)
        elif prompts and self._before == "prompts":
            assert not self.ready(), f"it was the turn of {self.ready()}"
        self.rules.seen["turns"] += kind != self._before
        if decodes or prompts:
            self._before = kind


RULES: dict[str, Callable[[Rules], PolicyRules]] = {
    "prefill-first": PrefillFirstRules,
    "layered-prefill": LayeredPrefillRules,
    "nexus": NexusRules,
    "sarathi": SarathiRules,
    "sarathi-serve": SarathiServeRules,
}
"""Of policies that have some of their own."""
