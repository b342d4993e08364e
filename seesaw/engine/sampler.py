"""Draws the next token of each row; keeps what sampling must know of a request between steps.

A draw depends on the request's seed and the position alone, so an answer is the same whatever runs
beside it, after a preemption, and with any number of steps in flight. Ranks that share the
vocabulary all draw, and draw the same. A draw is begun without waiting for the device, and its
tokens can be used there before anybody reads them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from seesaw.hostmem.upload import upload
from seesaw.layers.comm import ALONE, Comm
from seesaw.layout.ranges import vocab_range
from seesaw.ops.adjust_logits import RowAdjustment, adjust_logits
from seesaw.ops.highest import highest
from seesaw.ops.logprobs import logprobs
from seesaw.ops.sample import sample, uniform
from seesaw.plan.sampling_workspace import rows_at_once
from seesaw.scheduler.output import NewRequest, TokenLogprobs

# Shape letters: S rows that draw, N some of them, V vocabulary, or a rank's part of it.

Drawn = tuple[list[int], "list[TokenLogprobs | None] | None"]
"""Tokens of rows, and log-probabilities where a row asks for them."""


class SamplingState:
    """What one request asks of its draws. `begin_draw` and `draw` tell it of each token."""

    __slots__ = ("_banned", "_counts", "_num_begun", "_num_known", "params", "seed")

    def __init__(self, request: NewRequest) -> None:
        params = self.params = request.sampling
        self.seed = request.seed
        self._num_begun = self._num_known = 0
        ends = params.end_token_ids(request.eos_token_ids)
        self._banned = sorted(ends) if params.min_tokens else []
        self._counts: Counter[int] | None = None
        if params.repetition_penalty != 1:
            self._counts = Counter(dict.fromkeys(request.prompt_token_ids, 0))
        elif params.presence_penalty or params.frequency_penalty:
            self._counts = Counter()

    @property
    def needs_known_tokens(self) -> bool:
        """Whether a draw depends on the tokens drawn before it by more than the model: it can be
        begun only when those are known."""
        return self._counts is not None

    @property
    def takes_the_highest(self) -> bool:
        """Whether the next draw is the highest logit and nothing else is asked."""
        params = self.params
        return params.greedy and params.logprobs is None and self.adjustment(0) is None

    def uniform(self) -> float:
        """The random number in [0, 1) of the next draw."""
        return uniform(self.seed, self._num_begun)

    def adjustment(self, row: int) -> RowAdjustment | None:
        """What is done to the logits of the next draw, which stand in `row`; None = nothing."""
        params = self.params
        banned = self._banned if self._num_begun < params.min_tokens else []
        if not (banned or params.logit_bias or self._counts is not None):
            return None
        assert self._counts is None or self._num_known == self._num_begun, (
            f"penalties need {self._num_begun} drawn tokens, {self._num_known} are known"
        )
        if not (banned or params.logit_bias or self._counts):
            return None
        return RowAdjustment(
            row,
            banned=banned,
            bias=params.logit_bias or {},
            counts=self._counts or {},
            repetition_penalty=params.repetition_penalty,
            frequency_penalty=params.frequency_penalty,
            presence_penalty=params.presence_penalty,
        )

    def add(self, token: int) -> None:
        """Take in a token that another rank has drawn."""
        self.begin()
        self.learn(token)

    def begin(self) -> None:
        """A draw was begun; its token comes with `learn`, in order."""
        self._num_begun += 1

    def learn(self, token: int) -> None:
        """The token of the earliest draw that was begun and is not known."""
        self._num_known += 1
        if self._counts is not None:
            self._counts[token] += 1


class HostCopy:
    """Copies of tensors on their way to the host: begun here, there after `wait`."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._event: torch.cuda.Event | None = None
        if tensors and tensors[0].is_cuda:
            self._host = [
                torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
                for x in tensors
            ]
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(tensors[0].device))
        else:
            self._host = [x.clone() for x in tensors]  # their memory may be used again meanwhile

    def wait(self) -> list[torch.Tensor]:
        if self._event is not None:
            self._event.synchronize()
        return self._host


@dataclass(frozen=True, slots=True)
class _Logprobs:
    """What `ops.logprobs` returns for `rows`, each of which asks for `counts` most probable."""

    rows: list[int]
    counts: list[int]
    tensors: tuple[torch.Tensor, ...]

    @property
    def most(self) -> int:
        return max(self.counts, default=0)

    @classmethod
    def to_fill(
        cls, rows: Sequence[int], states: Sequence[SamplingState], vocab: int, device: torch.device
    ) -> _Logprobs:
        """Room for those of `rows` that ask, taken before whole rows of logits come and go: small
        results that stay between those would keep the C library from using their memory again."""
        asking = [row for row in rows if states[row].params.logprobs is not None]
        counts = [states[row].params.logprobs or 0 for row in asking]
        shape = len(asking), min(max(counts, default=0), vocab)
        of_each = (shape[0], torch.float32), (shape[0], torch.int64)
        of_top = (shape, torch.int64), (shape, torch.float32)
        empty = tuple(torch.empty(s, dtype=d, device=device) for s, d in (*of_each, *of_top))
        return cls(asking, counts, empty)


class PendingDraw:
    """A draw that was begun. `ids_S`: its tokens (int64) on the device, in the order of the rows,
    for what is launched after it; nothing here reads it again. Draws of a request are finished in
    the order they were begun."""

    def __init__(
        self,
        ids_S: torch.Tensor,
        states: Sequence[SamplingState],
        asked: _Logprobs | None = None,
    ) -> None:
        self.ids_S = ids_S
        self._states = states
        self._asked = asked
        self._copy = HostCopy([ids_S, *(asked.tensors if asked else ())])
        for state in states:
            state.begin()

    def finish(self) -> Drawn:
        """Wait for the tokens and take them in; once."""
        host = [x.tolist() for x in self._copy.wait()]
        tokens: list[int] = host[0]
        for state, token in zip(self._states, tokens, strict=True):
            state.learn(token)
        if self._asked is None:
            return tokens, None
        entries: list[TokenLogprobs | None] = [None] * len(tokens)
        for row, count, one, rank, ids, tops in zip(
            self._asked.rows, self._asked.counts, *host[1:], strict=True
        ):
            entries[row] = TokenLogprobs(one, rank, ids[:count], tops[:count])
        return tokens, entries


def draw(
    logits_SV: torch.Tensor,
    states: Sequence[SamplingState],
    comm: Comm = ALONE,
    vocab_size: int | None = None,
) -> Drawn:
    """`begin_draw`, and wait for it."""
    return begin_draw(logits_SV, states, comm, vocab_size).finish()


def begin_draw(
    logits_SV: torch.Tensor,
    states: Sequence[SamplingState],
    comm: Comm = ALONE,
    vocab_size: int | None = None,
) -> PendingDraw:
    """Begin to draw one token per row of float32 logits, and log-probabilities where a row asks for
    them. The logits may be overwritten by what is launched afterwards.

    With several ranks, V are this rank's rows of the vocabulary (`rank_ranges`), `vocab_size` is
    all of it, and every rank draws the same: what it draws from is gathered, so that not even a
    differing last bit of one rank's logits can part them.
    """
    if comm.size == 1:
        ids_S, part = _draw_whole(logits_SV, states)
        return PendingDraw(ids_S, states, part)
    assert vocab_size is not None, "ranks that share a vocabulary must know its size"
    plain = [row for row, state in enumerate(states) if state.takes_the_highest]
    other = [row for row, state in enumerate(states) if not state.takes_the_highest]
    if not other:
        first = vocab_range(vocab_size, comm.size, comm.rank).start
        return begin_draw_highest(*highest(logits_SV, first), states, comm)
    device = logits_SV.device
    plain_N, other_N = upload(device, ("q", plain), ("q", other))
    ids_S = torch.empty(len(states), dtype=torch.int64, device=device)
    if plain:
        first = vocab_range(vocab_size, comm.size, comm.rank).start
        ids_S[plain_N] = _highest_of_ranks(*highest(logits_SV[plain_N], first), comm)
    kept = _Logprobs.to_fill(other, states, vocab_size, device)
    at_once, done = rows_at_once(vocab_size), 0
    for start in range(0, len(other), at_once):
        rows, rows_N = other[start : start + at_once], other_N[start : start + at_once]
        whole_NV = _gather_rows(logits_SV[rows_N], comm, vocab_size)
        ids_S[rows_N], part = _draw_whole(whole_NV, [states[row] for row in rows], kept.most)
        if part is not None:
            for all_of_them, some in zip(kept.tensors, part.tensors, strict=True):
                all_of_them[done : done + len(some)] = some
            done += len(part.rows)
    return PendingDraw(ids_S, states, kept if kept.rows else None)


def begin_draw_highest(
    value_S: torch.Tensor, id_S: torch.Tensor, states: Sequence[SamplingState], comm: Comm = ALONE
) -> PendingDraw:
    """The tokens of rows that all take the highest logit, the lowest id among equals. `value_S`
    (float32), `id_S` (int64): the highest of this rank's part of the vocabulary and its id.

    Every rank draws the same.
    """
    return PendingDraw(_highest_of_ranks(value_S, id_S, comm), states)


def _highest_of_ranks(value_S: torch.Tensor, id_S: torch.Tensor, comm: Comm) -> torch.Tensor:
    if comm.size == 1:
        return id_S
    # one message; float64 holds a float32 and any id exactly
    mine_S2 = torch.stack([value_S.double(), id_S.double()], dim=1)
    ranks_CS2 = torch.stack(comm.all_gather(mine_S2))
    best_1S = ranks_CS2[:, :, 0].argmax(0, keepdim=True)  # the first of equals: the lowest ids
    return ranks_CS2[:, :, 1].gather(0, best_1S)[0].long()


def _gather_rows(part_NV: torch.Tensor, comm: Comm, vocab_size: int) -> torch.Tensor:
    """Whole rows from each rank's columns, padded to the longest for the gathering."""
    sizes = [vocab_range(vocab_size, comm.size, rank).size for rank in range(comm.size)]
    padded_NV = F.pad(part_NV, (0, max(sizes) - part_NV.shape[1]))
    parts = comm.all_gather(padded_NV)
    return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], dim=1)


def _draw_whole(
    logits_SV: torch.Tensor, states: Sequence[SamplingState], most: int = 0
) -> tuple[torch.Tensor, _Logprobs | None]:
    """Tokens and what is asked about them, of at least `most` most probable ones each."""
    adjustments = [
        adjustment
        for row, state in enumerate(states)
        if (adjustment := state.adjustment(row)) is not None
    ]
    adjusted_SV = adjust_logits(logits_SV, adjustments)
    if all(state.params.greedy for state in states):
        _, ids_S = highest(adjusted_SV)
    else:
        ids_S = _sample(adjusted_SV, states)
    asking = [row for row, state in enumerate(states) if state.params.logprobs is not None]
    if not asking:
        return ids_S, None
    counts = [states[row].params.logprobs or 0 for row in asking]
    asked_N = ids_S
    if len(asking) < len(states):
        (rows_N,) = upload(logits_SV.device, ("q", asking))
        logits_SV, asked_N = logits_SV[rows_N], ids_S[rows_N]
    return ids_S, _Logprobs(asking, counts, logprobs(logits_SV, asked_N, max(most, *counts)))


def _sample(logits_SV: torch.Tensor, states: Sequence[SamplingState]) -> torch.Tensor:
    params = [state.params for state in states]
    uniform_S, top_k_S, temperature_S, top_p_S, min_p_S = upload(
        logits_SV.device,
        ("d", [state.uniform() for state in states]),
        # Any integer is allowed, also one that no tensor can hold; beyond the vocabulary it is all.
        ("q", [min(max(p.top_k, 0), logits_SV.shape[1]) for p in params]),
        ("f", [0.0 if p.greedy else p.temperature for p in params]),
        ("f", [p.top_p for p in params]),
        ("f", [p.min_p for p in params]),
    )
    return sample(
        logits_SV,
        temperature_S=temperature_S,
        top_k_S=top_k_S,
        top_p_S=top_p_S,
        min_p_S=min_p_S,
        uniform_S=uniform_S,
    )
