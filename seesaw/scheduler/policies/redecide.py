"""Whether a pair of layouts is still the right choice, by the lengths that requests turn out to
have: a job is planned for lengths that may be guesses, and answers end when the model ends them.

Both layouts are resident, so going on in the decode layout alone, and back to both in turns, takes
nothing but a decision, where the layout would change. The prefill layout alone is no way to go on:
its pool is a ring for prompts under way, and where answers turn out to have a few tokens, changes
of layout are few anyway, since the decode pool and the tier hold most of them.
"""

from __future__ import annotations

from seesaw.plan.pair_times import PairTimes
from seesaw.scheduler.step import StepBuilder

GAIN = 1.05
"""How many times faster the other way must be predicted to be: more than predictions differ by
from what they predict, so that none is left for nothing."""

LEAST_ENDED = 16
"""Answers that must have ended, since the last change of mind too."""

LOOKED_AT = 64
"""Waiting requests that stand for all of them."""


class Redecider:
    """Made with the times that a plan predicts."""

    def __init__(self, times: PairTimes) -> None:
        self._times = times
        self._decodes_only = False
        self._looked_at = self._decided_at = 0  # by answers that had ended

    def decodes_only(self, step: StepBuilder) -> bool:
        """Whether to go on in the decode layout alone. A change of mind is counted."""
        ended = step.mix.num_ended
        if ended == self._looked_at or ended - self._decided_at < LEAST_ENDED:
            return self._decodes_only
        self._looked_at = ended
        ratio = self._answer_tokens(step) / self._prompt_tokens(step)
        turns, alone = self._times.turns(ratio), self._times.decode_only(ratio)
        now, other = (alone, turns) if self._decodes_only else (turns, alone)
        if other * GAIN < now:
            self._decodes_only, self._decided_at = not self._decodes_only, ended
            step.note_redecision()
        return self._decodes_only

    def _answer_tokens(self, step: StepBuilder) -> float:
        """Of a request to come: known where all that wait will go on as long as they may, else as
        of those that were answered."""
        coming = [step.waiting[i] for i in range(min(LOOKED_AT, len(step.waiting)))]
        if coming and all(request.sampling.ignore_eos for request in coming):
            return sum(request.limit - request.num_prompt for request in coming) / len(coming)
        return step.mix.mean_answer

    def _prompt_tokens(self, step: StepBuilder) -> float:
        coming = [step.waiting[i].num_prompt for i in range(min(LOOKED_AT, len(step.waiting)))]
        return sum(coming) / len(coming) if coming else step.mix.mean_prompt
