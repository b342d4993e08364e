"""Draws the next token of each row; keeps what sampling must know of a request between steps.

A draw depends on the request's seed and the position alone, so an answer is the same whatever runs
beside it, after a preemption, and with any number of steps in flight. Ranks that share the
vocabulary all draw, and draw the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from seesaw.layers.comm import ALONE, Comm
from seesaw.layout.ranges import vocab_range
from seesaw.ops.adjust_logits import RowAdjustment, adjust_logits
from seesaw.ops.logprobs import logprobs
from seesaw.ops.sample import sample, uniform
from seesaw.plan.sampling_workspace import rows_at_once
from seesaw.scheduler.output import NewRequest, TokenLogprobs


class SamplingState:
    """What one request asks of its draws. `draw` must be told of each token it draws."""

    __slots__ = ("_banned", "_counts", "_num_drawn", "params", "seed")

    def __init__(self, request: NewRequest) -> None:
        params = self.params = request.sampling
        self.seed = request.seed
        self._num_drawn = 0
        ends = params.end_token_ids(request.eos_token_ids)
        self._banned = sorted(ends) if params.min_tokens else []
        self._counts: Counter[int] | None = None
        if params.repetition_penalty != 1:
            self._counts = Counter(dict.fromkeys(request.prompt_token_ids, 0))
        elif params.presence_penalty or params.frequency_penalty:
            self._counts = Counter()

    @property
    def takes_the_highest(self) -> bool:
        """Whether the next draw is the highest logit and nothing else is asked."""
        params = self.params
        return params.greedy and params.logprobs is None and self.adjustment(0) is None

    def uniform(self) -> float:
        """The random number in [0, 1) of the next draw."""
        return uniform(self.seed, self._num_drawn)

    def adjustment(self, row: int) -> RowAdjustment | None:
        """What is done to the logits of the next draw, which stand in `row`; None = nothing."""
        params = self.params
        banned = self._banned if self._num_drawn < params.min_tokens else []
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
        """Take in a drawn token."""
        self._num_drawn += 1
        if self._counts is not None:
            self._counts[token] += 1


def draw(
    logits_SV: torch.Tensor,
    states: Sequence[SamplingState],
    comm: Comm = ALONE,
    vocab_size: int | None = None,
) -> tuple[list[int], list[TokenLogprobs | None] | None]:
    """One token per row of float32 logits, and log-probabilities where a row asks for them.

    With several ranks, V are this rank's rows of the vocabulary (`rank_ranges`), `vocab_size` is
    all of it, and every rank returns the same: what it draws from is gathered, so that not even a
    differing last bit of one rank's logits can part them.
    """
    if comm.size == 1:
        return _draw_whole(logits_SV, states)
    assert vocab_size is not None, "ranks that share a vocabulary must know its size"
    plain = [row for row, state in enumerate(states) if state.takes_the_highest]
    other = [row for row, state in enumerate(states) if not state.takes_the_highest]
    tokens = [0] * len(states)
    entries: list[TokenLogprobs | None] = [None] * len(states)
    if plain:
        value_N, column_N = logits_SV[plain].max(-1)
        id_N = column_N + vocab_range(vocab_size, comm.size, comm.rank).start
        drawn = draw_highest(value_N, id_N, [states[row] for row in plain], comm)
        for row, token in zip(plain, drawn, strict=True):
            tokens[row] = token
    at_once = rows_at_once(vocab_size)
    for start in range(0, len(other), at_once):
        rows = other[start : start + at_once]
        whole_NV = _gather_rows(logits_SV[rows], comm, vocab_size)
        drawn, logprobs = _draw_whole(whole_NV, [states[row] for row in rows])
        for place, row in enumerate(rows):
            tokens[row] = drawn[place]
            entries[row] = logprobs[place] if logprobs else None
    asked = any(state.params.logprobs is not None for state in states)
    return tokens, entries if asked else None


def draw_highest(
    value_S: torch.Tensor, id_S: torch.Tensor, states: Sequence[SamplingState], comm: Comm = ALONE
) -> list[int]:
    """The tokens of rows that all take the highest logit, the lowest id among equals. `value_S`
    (float32), `id_S` (int64): the highest of this rank's part of the vocabulary and its id.

    Every rank returns the same.
    """
    if comm.size > 1:
        # one message; float64 holds a float32 and any id exactly
        mine_S2 = torch.stack([value_S.double(), id_S.double()], dim=1)
        ranks_CS2 = torch.stack(comm.all_gather(mine_S2))
        best_1S = ranks_CS2[:, :, 0].argmax(0, keepdim=True)  # the first of equals: the lowest ids
        id_S = ranks_CS2[:, :, 1].gather(0, best_1S)[0].long()
    tokens: list[int] = id_S.tolist()
    for state, token in zip(states, tokens, strict=True):
        state.add(token)
    return tokens


def _gather_rows(part_NV: torch.Tensor, comm: Comm, vocab_size: int) -> torch.Tensor:
    """Whole rows from each rank's columns, padded to the longest for the gathering."""
    sizes = [vocab_range(vocab_size, comm.size, rank).size for rank in range(comm.size)]
    padded_NV = F.pad(part_NV, (0, max(sizes) - part_NV.shape[1]))
    parts = comm.all_gather(padded_NV)
    return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], dim=1)


def _draw_whole(
    logits_SV: torch.Tensor, states: Sequence[SamplingState]
) -> tuple[list[int], list[TokenLogprobs | None] | None]:
    adjustments = [
        adjustment
        for row, state in enumerate(states)
        if (adjustment := state.adjustment(row)) is not None
    ]
    adjusted_SV = adjust_logits(logits_SV, adjustments)
    if all(state.params.greedy for state in states):
        tokens_S = adjusted_SV.argmax(-1)
    else:
        tokens_S = _sample(adjusted_SV, states)
    tokens = tokens_S.tolist()
    for state, token in zip(states, tokens, strict=True):
        state.add(token)
    asking = [row for row, state in enumerate(states) if state.params.logprobs is not None]
    if not asking:
        return tokens, None
    return tokens, _logprobs(logits_SV, tokens_S, asking, states)


def _logprobs(
    logits_SV: torch.Tensor,
    tokens_S: torch.Tensor,
    asking: list[int],
    states: Sequence[SamplingState],
) -> list[TokenLogprobs | None]:
    """Entries for the rows `asking`, from the raw logits; None for the others."""
    entries: list[TokenLogprobs | None] = [None] * len(states)
    counts = [states[row].params.logprobs or 0 for row in asking]
    sampled, ranks, ids, tops = logprobs(logits_SV[asking], tokens_S[asking], max(counts))
    columns = (sampled.tolist(), ranks.tolist(), ids.tolist(), tops.tolist())
    for row, count, one, rank, top_ids, top in zip(asking, counts, *columns, strict=True):
        entries[row] = TokenLogprobs(one, rank, top_ids[:count], top[:count])
    return entries


def _sample(logits_SV: torch.Tensor, states: Sequence[SamplingState]) -> torch.Tensor:
    params = [state.params for state in states]
    device = logits_SV.device
    return sample(
        logits_SV,
        temperature_S=torch.tensor(
            [0.0 if p.greedy else p.temperature for p in params], device=device
        ),
        # Any integer is allowed, also one that no tensor can hold; beyond the vocabulary it is all.
        top_k_S=torch.tensor(
            [min(max(p.top_k, 0), logits_SV.shape[1]) for p in params], device=device
        ),
        top_p_S=torch.tensor([float(p.top_p) for p in params], device=device),
        min_p_S=torch.tensor([float(p.min_p) for p in params], device=device),
        uniform_S=torch.tensor(
            [state.uniform() for state in states], dtype=torch.float64, device=device
        ),
    )
