"""How long prompts and answers are: what a plan is made for, and a simulation draws from."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Lengths(NamedTuple):
    """Tokens of one request."""

    prompt: int
    answer: int


class Workload(Protocol):
    """`name` as people give it; `source` says where the lengths come from."""

    @property
    def name(self) -> str: ...

    @property
    def source(self) -> str: ...

    def draw(self, count: int, seed: int) -> list[Lengths]:
        """The lengths of `count` requests; the same for the same seed."""
        ...
