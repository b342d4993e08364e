"""What a step may ask for, judged from outside: budgets, steps in flight, pipeline stages, and the
rules by which the phases of the built-in policies change.

Sees what the workers see and which requests live, nothing of the scheduler's own accounting. Where
the workers cannot know the very moment at which the scheduler lets go of something, both bounds are
computed, and a rule is broken only where it is by either.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from seesaw.scheduler.config import TierConfig
from seesaw.scheduler.output import Row, SchedulerOutput
from seesaw.scheduler.request import Request
from seesaw.scheduler.stats import SchedulerStats
from tests.scheduler.policy_rules import RULES
from tests.scheduler.traces import POLICY_OPTIONS, Trace, num_positions
from tests.scheduler.worker_model import WorkerModel

PHASED = ("seesaw", "seesaw-cost")
BUILT_IN = ("continuous", *POLICY_OPTIONS, *PHASED)


class Rules:
    def __init__(self, trace: Trace, worker: WorkerModel, requests: dict[int, Request]) -> None:
        self.trace = trace
        self.worker = worker
        self.requests = requests
        self.seen: Counter[str] = Counter()
        """How often something rare was met, so that tests can ask for it."""
        self._in_tail: set[str] = set()
        self._seated: dict[str, int] = {}  # had a row that decodes, having yielded so often
        self._yielding: set[str] = set()  # those that the workers hear of with this step
        tier = trace.config.tier
        self._rotates = tier is not None and tier.rotation_tokens > 0
        self._yielded: Counter[str] = Counter()  # how often each had, at the step before
        self._told: Counter[str] = Counter()  # how often the workers heard that each yielded
        own = RULES.get(trace.policy)
        self._own = None if own is None else own(self)

    def check(self, step: SchedulerOutput, in_flight: Sequence[SchedulerOutput]) -> None:
        """Before the workers run `step`; `in_flight` are those whose end is not reported."""
        self._check(step, in_flight)
        self._yielded = Counter({one: self._times_yielded(one) for one in self.worker.requests})

    def _check(self, step: SchedulerOutput, in_flight: Sequence[SchedulerOutput]) -> None:
        rows = step.rows
        self._yielding = set(step.preempted)
        self._told.update(step.preempted)
        self._check_budgets(step, rows, in_flight)
        self._check_stages(step, rows, in_flight)
        self._check_lanes(step, rows, in_flight)
        for row in rows:
            if self.is_alive(row.request_id):
                most = self.most(row.request_id)
                assert row.token_start + row.num_tokens < most, f"{row} runs past the last token"
        if self._own is not None:
            self._own.check(step)
        if self._rotates and self.trace.policy in PHASED:
            self._check_seats(rows)
        tier = self.worker.config.tier
        if tier is None:
            assert step.phase == "decode", "a phase without a second layout"
            assert not step.reshard
            return
        for store in step.stores:
            if store.token_start:
                self.seen["partial stores"] += 1
            if self.is_alive(store.request_id):
                most = self.most(store.request_id)
                end = store.token_start + store.num_tokens
                assert end + 1 < most, f"{store}: nothing is left to decode"
        for load in step.loads:
            self.seen["loads in step order"] += bool(load.after)
        self.seen["awaits"] += len(step.awaits)
        self._check_relays(step)
        if self.trace.policy in PHASED:
            self._check_phase(step, rows)
        if step.reshard:
            self.seen[f"to {step.phase}"] += 1
            if self.trace.policy in PHASED:
                self._check_switch(step, tier)

    # -- budgets ----------------------------------------------------------------------------------

    def most(self, request_id: str) -> int:
        return num_positions(self.trace.scripts[int(request_id)], self.trace.config.max_model_len)

    def _most_in_flight(self, phase: str) -> int:
        stages = self.worker.stages[phase]
        return stages + 1 if stages > 1 else self.trace.config.max_steps_in_flight

    def _check_budgets(
        self, step: SchedulerOutput, rows: Sequence[Row], in_flight: Sequence[SchedulerOutput]
    ) -> None:
        config = self.trace.config
        assert step.num_tokens <= config.max_num_batched_tokens
        assert len(rows) <= config.max_num_seqs
        # After a change of phase the steps of the old one may outnumber what the new one allows.
        in_flight = [one for one in in_flight if one.lane == step.lane]
        most = max(self._most_in_flight(one.phase) for one in (step, *in_flight))
        assert len(in_flight) < most, f"{len(in_flight) + 1} steps in flight, {most} are allowed"

    def _check_lanes(
        self, step: SchedulerOutput, rows: Sequence[Row], in_flight: Sequence[SchedulerOutput]
    ) -> None:
        """No request is in two lanes at once."""
        others = [one for one in in_flight if one.lane != step.lane]
        beside = {row.request_id for one in others for row in one.rows}
        self.seen["beside"] += bool(beside)
        for row in rows:
            assert row.request_id not in beside, f"{row}: its request is in the other lane"

    def _check_stages(
        self, step: SchedulerOutput, rows: Sequence[Row], in_flight: Sequence[SchedulerOutput]
    ) -> None:
        stages = self.worker.stages[step.phase]
        if stages == 1:
            return
        drawing = {
            row.request_id
            for one in in_flight
            if one.phase == step.phase
            for row in one.rows
            if row.samples
        }
        for row in rows:
            assert row.request_id not in drawing, f"{row}: its request is in another stage"
        decoding = [row for row in rows if self.is_decode(row)]
        residents = sum(
            (known.pool == step.phase or (known.stored is not None and self._rotates))
            and known.num_left <= 1
            and len(known.new.prompt_token_ids) <= known.computed
            and self.is_alive(request_id)
            for request_id, known in self.worker.requests.items()
        )
        if len(decoding) > 1 and self.trace.policy in BUILT_IN:
            self.seen["shares"] += 1
            assert len(decoding) <= -(-residents // stages), (
                f"{len(decoding)} of {residents} residents decode in one step of {stages} stages"
            )

    def _check_seats(self, rows: Sequence[Row]) -> None:
        """Who decodes stays, in the pool or parked, until it ends or is computed again."""
        for row in filter(self.is_decode, rows):
            self._seated[row.request_id] = self._times_yielded(row.request_id)
        self._seated = {
            one: times
            for one, times in self._seated.items()
            if self.is_alive(one) and self._times_yielded(one) == times
        }
        most = self.trace.config.max_num_seqs
        assert len(self._seated) <= most, f"{set(self._seated)} take turns, {most} may run"

    def _times_yielded(self, request_id: str) -> int:
        return self.requests[int(request_id)].num_preemptions if request_id.isdigit() else 0

    def _check_relays(self, step: SchedulerOutput) -> None:
        """Only what is run in the decode phase, and nobody is overtaken who is in the tier."""
        stored = {
            request_id
            for request_id, known in self.worker.requests.items()
            if known.stored is not None and known.pool is None and self.is_alive(request_id)
        }
        stored.difference_update(load.request_id for load in step.loads)
        for relay in step.relays:
            self.seen["relays"] += 1
            overtaken = self.trace.policy in PHASED and stored
            assert not overtaken, f"{relay} overtakes {stored}, which are in the tier"
            if self.is_alive(relay.request_id):
                most = self.most(relay.request_id)
                assert relay.num_tokens + 1 < most, f"{relay}: nothing is left to decode"

    # -- phases -----------------------------------------------------------------------------------

    def _check_phase(self, step: SchedulerOutput, rows: Sequence[Row]) -> None:
        """Pure batches, but for the tail, prompts that are prefilled in the decode layout."""
        if step.phase == "prefill":
            # When that is told is another matter: what is in flight is waited for first.
            for request_id, known in self.worker.requests.items():
                was_asked = self._times_yielded(request_id) > self._yielded[request_id]
                assert step.reshard or not was_asked or known.pool != "decode", (
                    f"resident {request_id} was to lose its KV while others prefill"
                )
            for row in rows:
                assert not self.is_decode(row), f"{row} decodes in the prefill phase"
            return
        if not step.reshard and self._waiting() and not self._tier_blocks_held(ended_too=True):
            self.seen["decode goes on"] += 1
        arrived = {load.request_id for load in step.loads}
        admitted = [
            request_id
            for request_id in step.appended_blocks
            if self._pool(request_id) is None and request_id not in arrived
        ]
        if admitted:
            self._check_tail(step, admitted)
        for row in rows:
            if not self.is_decode(row):
                assert row.request_id in self._in_tail, f"{row} prefills in the decode phase"

    def _check_tail(self, step: SchedulerOutput, admitted: Sequence[str]) -> None:
        """Only the last few prompts, or one that no longer fits elsewhere."""
        self._in_tail.update(admitted)
        if all(map(self._has_outgrown, admitted)):
            return
        self.seen["tail"] += 1
        if self.trace.policy != "seesaw":
            return
        assert self.trace.options.get("tail", True), f"{admitted} are prefilled beside decodes"
        waiting = sum(len(self.requests[int(one)].tokens) for one in self._waiting())
        most = self.trace.options.get("tail_tokens") or self.trace.config.max_num_batched_tokens
        assert waiting <= most, f"{waiting} prompt tokens are no tail, {most} would be"

    def _check_switch(self, step: SchedulerOutput, tier: TierConfig) -> None:
        waiting = self._waiting()
        if step.phase == "decode":
            prefilling = [
                request_id
                for request_id, known in self.worker.requests.items()
                if self._pool(request_id) == "prefill"
                and not known.has_drawn
                and self.is_alive(request_id)
            ]
            assert not prefilling, f"to decode in the middle of {prefilling}"
            free = tier.tier_blocks - self._tier_blocks_held(ended_too=True)
            fits = [
                self._tier_need(request_id) <= free and not self._has_outgrown(request_id)
                for request_id in self._next_of(waiting)
            ]
            # Who yields in this step may have done so before or after the switch.
            surely_waits = not self._yielding.issuperset(waiting)
            assert not (surely_waits and all(fits)), "to decode although the next prompt fits"
            return
        assert waiting, "to prefill although no prompt waits"
        held = self._tier_blocks_held(ended_too=False)
        switch, low_mark = (
            self.trace.options.get("switch", "minimal"),
            self.trace.options.get("low_mark", 0.0),
        )
        if switch != "prefill-first" and not self._rotates:
            assert held <= low_mark * tier.tier_blocks, f"to prefill with {held} tier blocks held"
        if switch == "decode-first":
            residents = [
                request_id
                for request_id, known in self.worker.requests.items()
                if known.pool == "decode"
                and self.is_alive(request_id)
                and not self.has_yielded(request_id)
            ]
            assert not residents, f"to prefill although {residents} decode"

    def check_transitions(self, stats: SchedulerStats) -> None:
        """`most_transitions`, where nothing but a full tier ends a prefill phase."""
        trace, tier = self.trace, self.trace.config.tier
        strict = trace.policy == "seesaw" and not trace.options.get("low_mark")
        minimal = trace.options.get("switch", "minimal") == "minimal"
        at_once = all(script.arrival_tick == 0 for script in trace.scripts)
        if tier is None or not (strict and minimal and at_once) or stats.num_preemptions:
            return
        if not trace.scripts:
            return
        bound = most_transitions(tier, [len(script.prompt) for script in trace.scripts])
        self.seen["bound"] += 1
        assert stats.num_transitions <= bound, f"{stats.num_transitions} transitions, bound {bound}"

    # -- what the workers see ---------------------------------------------------------------------

    def has_yielded(self, request_id: str) -> bool:
        """It was made to, and has not begun anew: the workers may not have heard of it yet."""
        return (
            request_id in self._yielding or self._times_yielded(request_id) > self._told[request_id]
        )

    def is_alive(self, request_id: str) -> bool:
        return request_id.isdigit() and self.requests[int(request_id)].finish_reason is None

    def _pool(self, request_id: str) -> str | None:
        known = self.worker.requests.get(request_id)
        return None if known is None or request_id in self._yielding else known.pool

    def is_decode(self, row: Row) -> bool:
        known = self.worker.requests.get(row.request_id)
        return known is not None and known.has_drawn and row.request_id not in self._yielding

    def _waiting(self) -> list[str]:
        """Live requests that have neither a table nor a copy in the tier."""
        waiting = []
        for request in self.requests.values():
            known = self.worker.requests.get(request.request_id)
            if request.finish_reason is None and (
                known is None
                or (known.pool is None and known.stored is None)
                or request.request_id in self._yielding
            ):
                waiting.append(request.request_id)
        return waiting

    def _next_of(self, waiting: list[str]) -> list[str]:
        """Who may be next in line: one that yielded before, else the first that arrived; and those
        that yield now."""
        surely = [request_id for request_id in waiting if request_id not in self._yielding]
        yielded = [request_id for request_id in surely if request_id in self.worker.requests]
        return [*(yielded or surely[:1]), *self._yielding.intersection(waiting)]

    def _tier_need(self, request_id: str) -> int:
        tier = self.worker.config.tier
        assert tier is not None
        num_tokens = len(self.requests[int(request_id)].tokens)
        # Where the next token is the last one, there is nothing to store.
        return -(-num_tokens // tier.tier_block_size) * (num_tokens + 1 < self.most(request_id))

    def _has_outgrown(self, request_id: str) -> bool:
        """With its answer so far it no longer fits the prefill pool or the tier."""
        config, tier = self.trace.config, self.worker.config.tier
        assert tier is not None
        return (
            self._tier_need(request_id) > tier.tier_blocks
            or len(self.requests[int(request_id)].tokens) > tier.prefill_blocks * config.block_size
        )

    def _tier_blocks_held(self, *, ended_too: bool) -> int:
        """Blocks that hold, or are kept for, somebody's KV; of ended requests too, which may or may
        not have been let go of by now."""
        held: set[int] = self.worker.transfers.tier_blocks if ended_too else set()
        kept = 0
        for request_id, known in self.worker.requests.items():
            if not (ended_too or self.is_alive(request_id)):
                continue
            held.update(known.kept if self._rotates else ())
            if known.stored is not None:
                held.update(known.stored.tier_blocks)
            elif known.pool == "prefill":
                kept += self._tier_need(request_id)
        return len(held) + kept


def most_transitions(tier: TierConfig, prompts: Sequence[int]) -> int:
    """The bound of the paper, in blocks, for prompts of so many tokens that are there at once: a
    prefill phase that ends because a prompt does not fit has taken at least what the tier holds
    less that prompt. Where running requests take turns, those that run from the tier take room of
    prompts: there may be none but for one of them in a phase."""
    if tier.rotation_tokens:
        return 2 * len(prompts) + 1
    need = [-(-tokens // tier.tier_block_size) for tokens in prompts]
    room = tier.tier_blocks - max(need) + 1
    return 2 * -(-sum(need) // room) + 1
