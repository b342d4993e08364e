"""What the ranks of one replica compute together, and the copies that the driver awaits of them."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from seesaw.scheduler.output import SchedulerOutput, TokenLogprobs
from tests.fuzz.costs import KVBytes, Order
from tests.fuzz.fake_rank import logprobs_of
from tests.fuzz.scenario import Scenario
from tests.scheduler.worker_model import WorkerModel

PLAYED = {
    "step_id", "phase", "reshard", "finished", "preempted", "new_requests", "appended_blocks",
    "known_tokens", "poison_blocks", "block_copies", "loads", "awaits",
    "batches", "stores", "relays", "announce",
}  # fmt: skip
"""Fields of a step that the worker model acts on. Others must be empty: what nobody plays, nobody
checks."""

MOST_STEPS = 20_000
"""Scenarios need some hundreds."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A step as the driver sent it, and what it draws."""

    step: SchedulerOutput
    token_ids: list[int]
    logprobs: list[TokenLogprobs | None] | None


class ReplicaModel:
    """The scheduler tests' worker model, for which a copy is complete when the driver has heard of
    it from all `num_ranks` ranks."""

    def __init__(self, scenario: Scenario, num_ranks: int, rng: random.Random) -> None:
        self.num_steps = 0
        self.prompts: list[int] = []
        """Tokens of each prompt that it was given."""
        self.moved: Counter[str] = Counter()
        """Bytes of complete copies by kind, counted from blocks and ranges alone."""
        self._model = WorkerModel(scenario.config, scenario.vocab_size)
        self._num_ranks = num_ranks
        self._rng = rng
        self._kv_bytes = KVBytes(scenario)
        self._awaited: dict[int, int] = {}

    def take(self, step: SchedulerOutput) -> Drawn:
        for name in SchedulerOutput.__dataclass_fields__.keys() - PLAYED:
            assert not getattr(step, name), f"{name} of step {step.step_id}: nobody plays it"
        # An announcement may be wrong, and ranks may leave it at that, as these do.
        assert step.announce != step.phase, f"step {step.step_id} announces its own phase"
        self.num_steps += 1
        assert self.num_steps < MOST_STEPS, "requests go round and round"
        self.prompts += [len(new.prompt_token_ids) for new in step.new_requests]
        for order in orders_of(step):
            self._awaited[order.transfer_id] = self._num_ranks
        token_ids = self._model.execute(step).token_ids
        return Drawn(step, token_ids, self._logprobs(step, token_ids))

    def _logprobs(
        self, step: SchedulerOutput, token_ids: list[int]
    ) -> list[TokenLogprobs | None] | None:
        """As a step has them: none at all, or one or none per token."""
        rows = [row for row in step.rows if row.samples]
        counts = [self._model.requests[row.request_id].new.sampling.logprobs for row in rows]
        if all(count is None for count in counts):
            return None
        size = self._model.vocab_size
        return [
            None if count is None else logprobs_of(token, count, size)
            for token, count in zip(token_ids, counts, strict=True)
        ]

    def bytes_of(self, rank: int, order: Order) -> tuple[int, int]:
        """That `rank`, counted within the replica, copies, and of these from others."""
        return self._kv_bytes.of(rank, order)

    def copy_some(self) -> None:
        """Copies get on between two events, each as far as it likes."""
        if self._rng.random() < 0.1:
            self._model.transfers.copy_some(self._rng)

    def confirmed(self, transfer_id: int) -> None:
        """The driver has heard of a copy from one more rank."""
        self._awaited[transfer_id] -= 1
        if self._awaited[transfer_id]:
            return
        del self._awaited[transfer_id]
        order = self._model.transfers.open[transfer_id].order
        for rank in range(self._num_ranks):
            num_bytes, peer_bytes = self.bytes_of(rank, order)
            self.moved[type(order).__name__] += num_bytes
            self.moved["from peers"] += peer_bytes
        self._model.transferred(transfer_id, self._rng)

    @property
    def num_open(self) -> int:
        """Copies that are not complete."""
        return len(self._model.transfers.open)


def orders_of(step: SchedulerOutput) -> list[Order]:
    return [*step.loads, *step.stores, *step.relays]
