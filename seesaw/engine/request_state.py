"""What a rank keeps of a request between steps: tokens as far as the host knows them, draws whose
tokens it does not know yet, blocks, sampling."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from seesaw.engine.sampler import SamplingState


@dataclass(slots=True)
class RequestState:
    """`num_drawing`: draws that were begun and are not finished. `drawn_at`: where the token of the
    last of them stands on the device, see `InputBuffers`."""

    tokens: list[int]
    sampling: SamplingState
    blocks: array[int] = field(default_factory=lambda: array("i"))
    num_drawing: int = 0
    drawn_at: int = 0

    def hear(self, start: int, tokens: list[int]) -> None:
        """Take in tokens from position `start` on, some of which may be known."""
        assert start <= len(self.tokens), f"tokens {len(self.tokens)} to {start} are unknown"
        for token in tokens[len(self.tokens) - start :]:
            self.tokens.append(token)
            self.sampling.add(token)

    def begin_draw(self, drawn_at: int) -> None:
        self.num_drawing += 1
        self.drawn_at = drawn_at

    def learn(self, token: int) -> None:
        """The token of the earliest draw that was begun; `sampling` has heard of it."""
        self.num_drawing -= 1
        self.tokens.append(token)
