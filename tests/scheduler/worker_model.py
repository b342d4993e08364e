"""A worker without tensors, written against `SchedulerOutput` alone.

It holds what a real worker would hold: tokens and block tables told by steps, and a KV pool. A KV
entry is the fingerprint of the exact tokens up to its position, so that a row which attends to
anything but its own prefix is caught: a block shared wrongly, reused too early, or not computed
again after a preemption.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from seesaw.scheduler.output import ModelOutput, NewRequest, Row, SchedulerOutput

_PRIME = (1 << 61) - 1
_STALE = -1


def extend_fingerprint(prefix: int, token: int) -> int:
    """The fingerprint of a prefix and one more token; equal ones mean equal tokens (61 bits)."""
    return (prefix * 1_000_003 + token + 17) % _PRIME


def fingerprints(tokens: Iterable[int]) -> list[int]:
    """Of every prefix of `tokens`, from one token on."""
    found, last = [], 1
    for token in tokens:
        last = extend_fingerprint(last, token)
        found.append(last)
    return found


def draw_token(prefix: int, seed: int, vocab_size: int) -> int:
    """The next token: a pure function of the tokens so far and the request's seed."""
    return (prefix ^ (seed * 0x9E3779B97F4A7C15)) * 0x2545F4914F6CDD1D % _PRIME % vocab_size


@dataclass(slots=True)
class _Known:
    new: NewRequest
    tokens: list[int]
    prefix: list[int]
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    started: bool = False


@dataclass(slots=True)
class WorkerModel:
    """Runs steps in order and fails at the first one that a real worker could not run right."""

    num_blocks: int
    block_size: int
    num_layers: int
    vocab_size: int
    requests: dict[str, _Known] = field(default_factory=dict)
    first_start: dict[str, int] = field(default_factory=dict)
    """Where the first row of each request ever began: what it was given for nothing."""
    num_drawn: int = 0
    num_preempted: int = 0
    kv: list[list[int]] = field(init=False)
    next_step: int = 0

    def __post_init__(self) -> None:
        self.kv = [[_STALE] * self.block_size for _ in range(self.num_blocks)]

    def execute(self, step: SchedulerOutput) -> ModelOutput:
        assert step.step_id == self.next_step, "steps must be numbered without gaps"
        self.next_step += 1
        self._apply(step)
        rows = [row for lane in step.lanes for row in lane.rows]
        assert rows, "an empty step was issued"
        assert len({row.request_id for row in rows}) == len(rows), "two rows of one request"
        written: set[tuple[int, int]] = set()
        for row in rows:
            self._write(row, written)
        # In each layer all KV of a step is written before any is read.
        tokens = [self._attend(row) for row in rows]
        drawn = [token for token in tokens if token is not None]
        self.num_drawn += len(drawn)
        return ModelOutput(step.step_id, drawn)

    def _apply(self, step: SchedulerOutput) -> None:
        for request_id in step.finished:
            del self.requests[request_id]
        for request_id in step.preempted:
            known = self.requests[request_id]
            assert known.blocks, f"{request_id} has no table to lose"
            known.blocks, known.computed, known.started = [], 0, False
            self.num_preempted += 1
        for new in step.new_requests:
            assert new.request_id not in self.requests, f"{new.request_id} sent twice"
            tokens = list(new.prompt_token_ids)
            self.requests[new.request_id] = _Known(new, tokens, fingerprints(tokens))
        for request_id, blocks in step.appended_blocks.items():
            table = self.requests[request_id].blocks
            table += blocks
            assert len(set(table)) == len(table), f"{request_id} has one block twice: {table}"
            assert all(0 <= block < self.num_blocks for block in table)
        for block in step.poison_blocks:
            self.kv[block] = [_STALE] * self.block_size

    def _write(self, row: Row, written: set[tuple[int, int]]) -> None:
        known = self.requests[row.request_id]
        assert (row.layer_start, row.layer_stop) == (0, self.num_layers), row
        assert row.num_tokens > 0, row
        if not known.started:
            # A table begins with what others computed; the row goes on behind it.
            known.started, known.computed = True, row.token_start
            self.first_start.setdefault(row.request_id, row.token_start)
        end = row.token_start + row.num_tokens
        assert row.token_start == known.computed, f"{row} leaves a gap or repeats"
        assert end <= len(known.tokens), f"{row}: tokens unknown to the worker"
        assert row.samples == (end == len(known.tokens)), f"{row}: samples is wrong"
        known.computed = end
        for position in range(row.token_start, end):
            slot = (known.blocks[position // self.block_size], position % self.block_size)
            assert slot not in written, f"{row} writes where another row of the step writes"
            written.add(slot)
            self.kv[slot[0]][slot[1]] = known.prefix[position]

    def _attend(self, row: Row) -> int | None:
        known = self.requests[row.request_id]
        end = row.token_start + row.num_tokens
        entries = [entry for block in known.blocks for entry in self.kv[block]]
        assert entries[:end] == known.prefix[:end], f"{row} attends to KV that is not its own"
        if not row.samples:
            return None
        token = draw_token(known.prefix[-1], known.new.seed, self.vocab_size)
        known.tokens.append(token)
        known.prefix.append(extend_fingerprint(known.prefix[-1], token))
        return token


def serial_tokens(prompt: Sequence[int], seed: int, vocab_size: int, count: int) -> list[int]:
    """`count` tokens after `prompt`, drawn one by one with nothing else around."""
    prefix = fingerprints(prompt)[-1]
    answer = []
    for _ in range(count):
        answer.append(draw_token(prefix, seed, vocab_size))
        prefix = extend_fingerprint(prefix, answer[-1])
    return answer
