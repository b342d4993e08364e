"""How many tokens a step may have for answers to come at a steady pace: Sarathi-Serve (OSDI 2024),
section 4.3, by the cost model where its authors profile.

A closed form over one worst step; what steps there are is the scheduler's business.
"""

from __future__ import annotations

from itertools import takewhile

from seesaw.errors import ConfigError
from seesaw.plan.cost_model import CostModel
from seesaw.plan.work import WorkCounter

PARTS = 4
"""Of the decodes beside a chunk, in steps of which the worst step is looked for."""


def token_budget(
    costs: CostModel, *, bound_s: float, tile: int, most: int, decodes: int, context: int,
    kv_tokens: int,
) -> int:  # fmt: skip
    """The most tokens, a multiple of `tile` up to `most`, with which no more than `bound_s` pass
    between two tokens of an answer, as far as steps take what the model says. Where `most` is less
    than a tile, `most`.

    `decodes` requests may decode at once beside a chunk; each request may have `context` tokens,
    all of them together `kv_tokens`. Where many share a long beginning they read more than there is
    room for, each of them all of it, and the bound may be exceeded: foreseeing that would leave
    others no budget.

    Raises ConfigError where not even the smallest budget keeps the bound.
    """
    worst = _WorstStep(costs, decodes, context, kv_tokens)
    sizes = range(tile, most + 1, tile) or [most]
    kept = list(takewhile(lambda size: worst.gap_s(size) <= bound_s, sizes))
    if not kept:
        raise ConfigError(
            f"tbt_bound_s={bound_s:g}: with {sizes[0]} tokens in a step, {decodes} answers at once "
            f"and requests of {context} tokens, {worst.gap_s(sizes[0]):.3g} s may pass between two "
            "tokens, as is predicted. Raise it, or lower max_num_seqs or max_model_len."
        )
    return kept[-1]


class _WorstStep:
    def __init__(self, costs: CostModel, decodes: int, context: int, kv_tokens: int) -> None:
        self._costs = costs
        self._counter = WorkCounter(costs.spec)
        self._context = context
        self._kv_tokens = kv_tokens
        # Of several stages each has a share of them.
        self._decodes = -(-decodes // costs.layout.pp)

    def gap_s(self, size: int) -> float:
        """Between two tokens of an answer, where all steps are the worst that `size` allows.

        That is the last chunk of the longest prompt, beside none or some or all of the decodes that
        there may be, since a row of a chunk may cost more or less than one that decodes; or these
        alone. With one stage decodes never exceed the budget, since each prompt that ends takes a
        token of it; prompts that end in different stages at once may bring them above it.
        """
        most = min(self._decodes, size - 1)
        some = {most * part // PARTS for part in range(PARTS + 1)}
        alone = min(self._decodes, size) if self._costs.layout.pp == 1 else self._decodes
        candidates = [(0, alone), *((size - beside, beside) for beside in some)]
        return max(self._round_s(*one) for one in candidates)

    def _round_s(self, chunk: int, decodes: int) -> float:
        keys = max(1, min(self._context, self._kv_tokens // max(1, decodes)))
        rows = [(1, keys, True)] * decodes
        if chunk:
            rows.append((chunk, max(chunk, self._context), True))
        work = self._counter.count(rows)
        # A full pipeline gives a request its next token when all of its groups have gone round.
        stages = self._costs.stages_s(work)
        pp = len(stages)
        handed_over_s = (pp - 1) * self._costs.send_s(work.num_tokens) if pp > 1 else 0.0
        return pp * max(stages) + handed_over_s
