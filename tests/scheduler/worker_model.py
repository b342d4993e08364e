"""All ranks of a replica without tensors, written against `SchedulerOutput` alone.

It holds what real workers would hold: tokens and block tables told by steps, a KV pool per phase,
and the host tier. A KV entry is the fingerprint of the exact tokens up to its position, so that a
row which attends to anything but its own prefix is caught: a block shared wrongly, reused too early
or in the other pool, not computed again after a preemption, or not there yet.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from seesaw.scheduler.config import SchedulerConfig
from seesaw.scheduler.output import (
    Load,
    ModelOutput,
    NewRequest,
    Phase,
    Relay,
    Row,
    SchedulerOutput,
    Store,
)
from tests.scheduler.transfer_model import STALE, Order, TransferModel, make_pool

_PRIME = (1 << 61) - 1


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
class Known:
    """A request as the workers know it."""

    new: NewRequest
    tokens: list[int]
    """All that exist; the last stage, which draws them, knows them all."""
    prefix: list[int]
    num_everywhere: int
    """How many of `tokens` each rank of either layout knows."""
    pool: Phase | None = None
    """Where its table lies."""
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    saved: tuple[int, int, int] | None = None
    """Positions that stand between two layers: first one, how many, and the layer that is next."""
    started: bool = False
    has_drawn: bool = False
    """Since it has this table, or the copy in the tier that became it."""
    stored: Store | None = None
    """Its copy in the tier, all of it: from the store's step until the load is reported complete or
    awaited."""
    loading: int = -1
    """The load that was begun last."""
    kept: list[int] = field(default_factory=list)
    """Tier blocks that it was loaded from, which may still be its own."""

    @property
    def num_left(self) -> int:
        return len(self.tokens) - self.computed


class WorkerModel:
    """Runs steps in order and fails at the first one that real workers could not run right."""

    def __init__(self, config: SchedulerConfig, vocab_size: int) -> None:
        tier = config.tier
        self.config = config
        self.vocab_size = vocab_size
        self.requests: dict[str, Known] = {}
        self.first_start: dict[str, int] = {}
        """Where the first row of each request ever began: what it was given for nothing."""
        self.num_drawn = self.num_preempted = self.next_step = 0
        self.phase: Phase = "prefill" if tier else "decode"
        self.pools = {"decode": make_pool(config.num_blocks, config.block_size)}
        self.stages = {"decode": config.num_stages}
        if tier:
            self.pools["prefill"] = make_pool(tier.prefill_blocks, config.block_size)
            self.stages = {"prefill": tier.prefill_stages, "decode": tier.decode_stages}
        self.transfers = TransferModel(
            self.pools,
            make_pool(tier.tier_blocks, tier.tier_block_size) if tier else [],
            config.block_size,
            tier.tier_block_size if tier else config.block_size,
        )

    def execute(self, step: SchedulerOutput) -> ModelOutput:
        self.take_in(step)
        return self.run(step)

    def take_in(self, step: SchedulerOutput) -> None:
        """What the step says of requests and blocks: in the order of all steps, before the rows of
        those in front of it in its lane may have run."""
        assert step.step_id == self.next_step, "steps must be numbered without gaps"
        self.next_step += 1
        assert 0 <= step.lane < self.config.num_lanes, f"no lane {step.lane}"
        self._apply(step)

    def run(self, step: SchedulerOutput) -> ModelOutput:
        """Its rows, in the order of its lane, and its copies."""
        rows = step.rows
        assert rows or step.reshard or step.loads or step.stores, "an empty step was issued"
        assert len({row.request_id for row in rows}) == len(rows), "two rows of one request"
        for load in step.loads:
            self._begin_load(load)
        for transfer_id in step.awaits:
            self._await(transfer_id)
        moving = self.transfers.reading(self.phase) | self.transfers.writing(self.phase)
        written: set[tuple[int, int]] = set()
        for row in rows:
            self._write(row, written, moving)
        # In each layer all KV of a step is written before any is read.
        arriving = self.transfers.writing(self.phase)
        tokens = [self._attend(row, arriving) for row in rows]
        saved = [known.saved[1] for known in self.requests.values() if known.saved is not None]
        most = self.config.max_num_batched_tokens
        assert sum(saved) <= most, f"{sum(saved)} positions are between layers, {most} may be"
        drawn = [token for token in tokens if token is not None]
        self.num_drawn += len(drawn)
        for store in step.stores:
            self._begin_store(store)
        for relay in step.relays:
            self._begin_relay(relay)
        return ModelOutput(step.step_id, drawn)

    def transferred(self, transfer_id: int, rng: random.Random) -> None:
        """The copy is complete and the scheduler hears of it now."""
        self._arrived(self.transfers.complete(transfer_id, rng))

    def _await(self, transfer_id: int) -> None:
        order = self.transfers.finish_here(transfer_id, random.Random(transfer_id))
        if order is not None:
            self._arrived(order)

    def _arrived(self, order: Order) -> None:
        known = self.requests.get(order.request_id)
        is_latest = known is not None and known.loading == order.transfer_id
        if known is not None and is_latest and known.stored is not None:
            known.stored, known.kept = None, list(known.stored.tier_blocks)

    # -- before the rows --------------------------------------------------------------------------

    def _apply(self, step: SchedulerOutput) -> None:
        for request_id in step.finished:
            del self.requests[request_id]
        for request_id in step.preempted:
            self._preempt(request_id)
        assert step.reshard == (step.phase != self.phase), "reshard and phase disagree"
        assert step.phase in self.pools, f"no layout for phase {step.phase}"
        self.phase = step.phase
        for new in step.new_requests:
            assert new.request_id not in self.requests, f"{new.request_id} sent twice"
            tokens = list(new.prompt_token_ids)
            known = Known(new, tokens, fingerprints(tokens), len(tokens))
            self.requests[new.request_id] = known
        for request_id, blocks in step.appended_blocks.items():
            self._append_blocks(request_id, blocks)
        for request_id, (position, tokens) in step.known_tokens.items():
            self._tell(request_id, position, tokens)
        busy = self.transfers.reading(self.phase) | self.transfers.writing(self.phase)
        for block in step.poison_blocks:
            assert block not in busy, f"block {block} is poisoned while it is copied"
            self.pools[self.phase][block] = [STALE] * self.config.block_size
        assert not step.block_copies, "nothing has a use for block copies yet"

    def _preempt(self, request_id: str) -> None:
        known = self.requests[request_id]
        assert known.blocks or known.stored, f"{request_id} has no KV to lose"
        assert not self.transfers.is_moving(request_id), f"{request_id} yields while it is copied"
        known.pool, known.blocks, known.stored, known.kept = None, [], None, []
        known.computed, known.started, known.has_drawn, known.saved = 0, False, False, None
        self.num_preempted += 1

    def _append_blocks(self, request_id: str, blocks: list[int]) -> None:
        known = self.requests[request_id]
        assert known.stored is None or known.pool, f"{request_id} has blocks and is in the tier"
        if known.pool is None:
            known.pool = self.phase
        assert known.pool == self.phase, f"{request_id}: a table of two pools"
        known.blocks += blocks
        self._check_table(known)

    def _tell(self, request_id: str, position: int, tokens: list[int]) -> None:
        known = self.requests[request_id]
        end = position + len(tokens)
        assert tokens, f"{request_id}: told nothing"
        assert position <= known.num_everywhere, f"{request_id}: a gap before the tokens told"
        assert known.tokens[position:end] == tokens, f"{request_id}: told wrong tokens"
        assert end > known.num_everywhere, f"{request_id}: told what every rank knows"
        known.num_everywhere = end

    def _check_table(self, known: Known) -> None:
        assert known.pool is not None
        assert len(set(known.blocks)) == len(known.blocks), f"one block twice: {known}"
        assert all(0 <= block < len(self.pools[known.pool]) for block in known.blocks), known

    # -- rows -------------------------------------------------------------------------------------

    def _write(self, row: Row, written: set[tuple[int, int]], moving: set[int]) -> None:
        known = self.requests[row.request_id]
        num_layers = self.config.num_layers
        assert 0 <= row.layer_start < row.layer_stop <= num_layers, row
        assert row.num_tokens > 0, row
        assert known.pool == self.phase, f"{row} in {self.phase}, its table is of {known.pool}"
        assert known.stored is None, f"{row} runs before its load is complete"
        if not known.started:
            # A table begins with what others computed; the row goes on behind it.
            known.started, known.computed = True, row.token_start
            self.first_start.setdefault(row.request_id, row.token_start)
        end = row.token_start + row.num_tokens
        assert row.token_start == known.computed, f"{row} leaves a gap or repeats"
        assert end <= known.num_everywhere, f"{row}: tokens unknown to the first stage"
        is_last = row.layer_stop == num_layers
        assert row.samples == (is_last and end == len(known.tokens)), f"{row}: samples is wrong"
        goes_on = (row.token_start, row.num_tokens, row.layer_start) if row.layer_start else None
        assert known.saved == goes_on, f"{row} does not go on where it stopped: {known.saved}"
        known.saved = None if is_last else (row.token_start, row.num_tokens, row.layer_stop)
        known.computed = end if is_last else row.token_start
        size, pool = self.config.block_size, self.pools[self.phase]
        for position in range(row.token_start, end):
            slot = (known.blocks[position // size], position % size)
            assert slot not in written, f"{row} writes where another row of the step writes"
            assert slot[0] not in moving, f"{row} writes to block {slot[0]} while it is copied"
            written.add(slot)
            # What has the KV of some layers only is nobody's prefix yet.
            some, whole = -known.prefix[position], known.prefix[position]
            if row.layer_start:
                assert pool[slot[0]][slot[1]] == some, f"{row}: its first layers are overwritten"
            pool[slot[0]][slot[1]] = whole if is_last else some

    def _attend(self, row: Row, arriving: set[int]) -> int | None:
        known = self.requests[row.request_id]
        assert arriving.isdisjoint(known.blocks), f"{row} attends to what is still being loaded"
        whole = known.computed  # with this row's tokens where they have run the last layer
        assert self._kv(known)[:whole] == known.prefix[:whole], f"{row} attends to KV not its own"
        if not row.samples:
            return None
        token = draw_token(known.prefix[-1], known.new.seed, self.vocab_size)
        known.has_drawn = True
        known.tokens.append(token)
        known.prefix.append(extend_fingerprint(known.prefix[-1], token))
        if self.stages[self.phase] == 1:
            known.num_everywhere = len(known.tokens)
        return token

    def _kv(self, known: Known) -> list[int]:
        assert known.pool is not None
        pool = self.pools[known.pool]
        return [entry for block in known.blocks for entry in pool[block]]

    # -- transfers --------------------------------------------------------------------------------

    def _begin_store(self, store: Store) -> None:
        known = self.requests[store.request_id]
        start, end = store.token_start, store.token_start + store.num_tokens
        size, wide = self.config.block_size, self.transfers.tier_block_size
        assert known.pool == store.phase, f"{store}: the table is of {known.pool}"
        assert known.stored is None, f"{store} of what the tier holds already"
        assert end == known.computed, f"{store}: {known.computed} computed"
        assert start % wide == 0, f"{store}: begins inside a tier block"
        assert start <= wide * len(known.kept) or not start, f"{store}: a gap behind {known.kept}"
        table = known.blocks[start // size : -(-end // size)]
        assert store.blocks[: len(table)] == table, f"{store}: not its table"
        assert not self.transfers.under_way(store.request_id), f"{store} of what is being copied"
        assert not self.transfers.writing(store.phase) & set(store.blocks), f"{store} of a load"
        assert self._kv(known)[:end] == known.prefix[:end], f"{store} of KV not its own"
        before = known.kept[: start // wide]
        again = known.kept[start // wide :] if start else []
        assert store.tier_blocks[: len(again)] == again, f"{store}: kept in {known.kept}"
        taken = self.held_tier_blocks(store.request_id) & set(store.tier_blocks)
        assert not taken, f"{store}: tier blocks {taken} are in use"
        assert all(0 <= block < len(self.transfers.tier) for block in store.tier_blocks), store
        assert len(set(store.tier_blocks)) == len(store.tier_blocks), store
        self.transfers.begin(store)
        known.pool, known.blocks, known.kept, known.loading = None, [], [], -1
        known.stored = store._replace(
            tier_blocks=before + store.tier_blocks, num_tokens=end, token_start=0
        )

    def _begin_load(self, load: Load) -> None:
        known = self.requests[load.request_id]
        store = known.stored
        assert store is not None, f"{load}: the tier does not hold it"
        early = self.transfers.under_way(load.request_id).difference(load.after)
        assert not early, f"{load} before its store is complete"
        assert load.tier_blocks == store.tier_blocks, f"{load}: stored in {store.tier_blocks}"
        assert load.num_tokens == store.num_tokens, f"{load}: stored {store.num_tokens}"
        taken = self._held_blocks("decode", load.after) & set(load.blocks)
        assert not taken, f"{load}: blocks {taken} of the decode pool are in use"
        self.transfers.begin(load)
        known.pool, known.blocks = "decode", list(load.blocks)
        known.computed, known.started, known.loading = load.num_tokens, True, load.transfer_id
        self._check_table(known)

    def _begin_relay(self, relay: Relay) -> None:
        known = self.requests[relay.request_id]
        tier = self.config.tier
        assert tier is not None
        assert tier.relays, f"{relay}: not wanted"
        assert known.pool == "prefill", f"{relay}: the table is of {known.pool}"
        assert relay.num_tokens == known.computed, f"{relay}: {known.computed} computed"
        assert list(relay.blocks) == known.blocks, f"{relay}: the table is {known.blocks}"
        taken = self._held_blocks("decode") & set(relay.to_blocks)
        assert not taken, f"{relay}: blocks {taken} of the decode pool are in use"
        self.transfers.begin(relay)
        known.pool, known.blocks = "decode", list(relay.to_blocks)
        self._check_table(known)

    def held_tier_blocks(self, but: str = "") -> set[int]:
        """Those that hold, or are about to hold, what somebody else than `but` will read."""
        held = self.transfers.tier_blocks_of_others(but)
        for request_id, known in self.requests.items():
            if known.stored is not None and request_id != but:
                held.update(known.stored.tier_blocks)
        return held

    def _held_blocks(self, pool: Phase, after: Sequence[int] = ()) -> set[int]:
        """But those that are read by transfers `after`, which are waited for."""
        held = self.transfers.reading(pool, after) | self.transfers.writing(pool)
        for known in self.requests.values():
            if known.pool == pool:
                held.update(known.blocks)
        return held


def serial_tokens(prompt: Sequence[int], seed: int, vocab_size: int, count: int) -> list[int]:
    """`count` tokens after `prompt`, drawn one by one with nothing else around."""
    prefix = fingerprints(prompt)[-1]
    answer = []
    for _ in range(count):
        answer.append(draw_token(prefix, seed, vocab_size))
        prefix = extend_fingerprint(prefix, answer[-1])
    return answer
