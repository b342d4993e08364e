"""SARATHI: a step is exactly one chunk of one prompt and all that decodes, which rides on it.

The paper (arXiv 2308.16369), sections 4.2 and 4.3: the weights that the chunk reads serve the
decodes too, so these cost next to nothing; and chunk and decodes together are a multiple of the
tile in which matrix products are computed, since one row more than a tile costs a whole one.

Our choices where the paper is silent: prompts go in order of arrival, one after the other; the last
chunk of a prompt is what is left of it; where the decodes alone reach the width of a step it grows
by whole tiles, so that they are never dropped and the prompt goes on. The paper gives each request
the KV of the longest one; here it is that of its own longest answer, which is the same where all
are alike. Either way no request ever yields. With several pipeline stages each step has the next
chunk and an equal share of the decodes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from seesaw.errors import ConfigError
from seesaw.scheduler.policies.checks import check_tokens
from seesaw.scheduler.policies.rows import prompts_under_way, run_decodes
from seesaw.scheduler.request import Request
from seesaw.scheduler.step import StepBuilder


@dataclass(frozen=True, kw_only=True)
class SarathiOptions:
    chunk: int = field(
        default=256,
        metadata={
            "help": "tokens of a step: a chunk of one prompt, and all that decode; at most "
            "max_num_batched_tokens",
            "of_step": True,
        },
    )
    tile: int = field(
        default=128,
        metadata={
            "help": "rows that matrix products are computed in, of which a step has a multiple"
        },
    )

    def __post_init__(self) -> None:
        check_tokens("tile", self.tile, 1, "rows, at least 1 (which aligns nothing)")
        check_tokens("chunk", self.chunk, 1, f"tokens, a multiple of tile={self.tile}")
        if self.chunk % self.tile:
            near = max(1, round(self.chunk / self.tile)) * self.tile
            raise ConfigError(
                f"chunk={self.chunk}: expected a multiple of tile={self.tile}, such as {near}."
            )


class Sarathi:
    Options = SarathiOptions

    def __init__(self, options: SarathiOptions) -> None:
        self._chunk = options.chunk
        self._tile = options.tile

    def plan(self, step: StepBuilder) -> None:
        assert step.config.tier is None, "policy 'sarathi' has no use for a host tier"
        short = run_decodes(step)
        assert not short, "a request outgrew the blocks that were kept for it"
        room = self._width(step) - (step.budget - step.tokens_left)
        if room <= 0:
            return
        prompts = prompts_under_way(step)
        assert len(prompts) <= 1, "two prompts at once"
        prompt = prompts[0] if prompts else self._admit(step)
        if prompt is not None:
            step.schedule(prompt, room)

    def _width(self, step: StepBuilder) -> int:
        """Tokens of this step, whose decodes have their rows: whole tiles, if the step's budget has
        room for one."""
        tile, num_decodes = self._tile, step.num_decode_rows
        most = step.budget // tile * tile or step.budget
        return min(most, max(self._chunk, -(-(num_decodes + 1) // tile) * tile))

    def _admit(self, step: StepBuilder) -> Request | None:
        """The next in line, if its longest answer and those of all that run fit the pool."""
        if not step.waiting:
            return None
        size, request = step.config.block_size, step.waiting[0]
        # The KV of a request's last token is never needed.
        to_come = -(-(request.limit - 1) // size) - -(-request.num_tokens // size)
        for other in step.running:
            to_come += -(-(other.limit - 1) // size) - len(other.blocks)
        return request if step.admit(request, reserve_blocks=to_come) else None
