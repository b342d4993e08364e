"""The requests of one job, in the moments of their lengths that its time depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from seesaw.plan.workload import Lengths

EVEN = 0.01
"""Squared deviation of answers, over their squared mean, up to which they count as equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The requests of one job in the moments that its time depends on; tokens."""

    num_requests: int
    prompt: float
    answer: float
    prompt_square: float
    """Mean of the squared prompt, which attention over prompts follows."""
    context: float
    """Mean keys that a row which decodes reads: long answers are met more often."""
    residual: float
    """Mean of what is still to come of an answer, met while it decodes."""
    longest: int
    """Prompt and answer of one request together."""
    answers: Sequence[int]
    """Of a sample, the shortest first."""

    @classmethod
    def of(cls, lengths: Sequence[Lengths], num_requests: int | None = None) -> Self:
        """Of a sample of lengths that stands for `num_requests` (default: as many as it has)."""
        count = len(lengths)
        answers = sum(one.answer for one in lengths)
        residual = sum(one.answer**2 for one in lengths) / answers / 2
        return cls(
            num_requests=num_requests or count,
            prompt=sum(one.prompt for one in lengths) / count,
            answer=answers / count,
            prompt_square=sum(one.prompt**2 for one in lengths) / count,
            context=sum(one.prompt * one.answer for one in lengths) / answers + residual,
            residual=residual,
            longest=max(one.prompt + one.answer for one in lengths),
            answers=sorted(one.answer for one in lengths),
        )

    @property
    def is_even(self) -> bool:
        """Answers are about as long as each other: those that begin together end together."""
        return 2 * self.residual / self.answer < 1 + EVEN

    def longest_of(self, count: float) -> int:
        """The longest answer among `count`, as is to be expected."""
        at = int(len(self.answers) * count / (count + 1))
        return self.answers[min(at, len(self.answers) - 1)]
