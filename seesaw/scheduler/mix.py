"""How long prompts and answers turn out to be, of the latest requests that have ended."""

from __future__ import annotations

from dataclasses import dataclass

WINDOW = 32
"""Answers that count in full; older ones count half with each further WINDOW."""


@dataclass(slots=True)
class Mix:
    """Means count tokens that were drawn for answers that have not ended too: those that end first
    are the short ones, and alone would say that all are."""

    num_ended: int = 0
    """Over the scheduler's life."""
    _ended: float = 0.0
    _prompt_tokens: float = 0.0
    _answer_tokens: float = 0.0

    def drew(self) -> None:
        """A token of an answer."""
        self._answer_tokens += 1

    def ended(self, num_prompt: int) -> None:
        self.num_ended += 1
        self._ended += 1
        self._prompt_tokens += num_prompt
        if self._ended >= 2 * WINDOW:
            self._ended /= 2
            self._prompt_tokens /= 2
            self._answer_tokens /= 2

    @property
    def mean_prompt(self) -> float:
        return self._prompt_tokens / max(1.0, self._ended)

    @property
    def mean_answer(self) -> float:
        return self._answer_tokens / max(1.0, self._ended)
